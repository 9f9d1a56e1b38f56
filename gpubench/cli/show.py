"""What a run prints to standard output: its report in one of the formats, or what it would measure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from gpubench.text import printable

if TYPE_CHECKING:
    from gpubench.cli.options import OutputFormat
    from gpubench.report.model import Report
    from gpubench.search.space import Matrix


def print_dry_run(matrix: Matrix, format_: OutputFormat) -> None:
    """Prints every configuration and every skip with its sentence."""
    rows = [matrix.baseline, *matrix.planned]
    ladder = [f"+ {name}, at the best of {', '.join(values)}" for name, values in runnable(matrix).items()]
    if format_ == "json":
        import msgspec

        document = {
            "strategy": matrix.strategy,
            "configurations": [
                {"id": row.id, "configuration": row.configuration, "skipped": row.skip or None} for row in rows
            ],
            "ladder": ladder if matrix.strategy == "ladder" else [],
            "left_out": matrix.left_out,
        }
        typer.echo(msgspec.json.format(msgspec.json.encode(document)).decode())
        return
    for row in rows:
        typer.echo(printable(f"skip     {row.skip}" if row.skip else f"measure  {row.id}"))
    if matrix.strategy == "ladder":
        for line in ladder:
            typer.echo(printable(f"ladder   {line}"))
    for name, reason in matrix.left_out.items():
        typer.echo(printable(f"no       {name}: {reason}"))


def runnable(matrix: Matrix) -> dict[str, list[str]]:
    """The values of each technique that can run, in the ladder's order."""
    found: dict[str, list[str]] = {}
    for row in matrix.planned:
        for role in row.roles:
            if role.kind == "alone" and role.toggle and not row.skip:
                found.setdefault(role.toggle, []).append(str(row.configuration[role.toggle]))
    return found


def print_report(report: Report, format_: OutputFormat) -> None:
    """Prints `report` as table, JSON, CSV or Markdown."""
    from gpubench.cli.report import render

    render(report, format_)
