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
    lines = [f"skip     {row.skip}" if row.skip else f"measure  {row.id}" for row in rows]
    if matrix.strategy == "ladder":
        lines += [f"ladder   {line}" for line in ladder]
    lines += [f"no       {name}: {reason}" for name, reason in matrix.left_out.items()]
    for line in lines:
        typer.echo(printable(line))


def runnable(matrix: Matrix) -> dict[str, list[str]]:
    """The values of each technique that can run, in the ladder's order."""
    found: dict[str, list[str]] = {}
    for row in matrix.planned:
        for role in row.roles:
            if role.kind == "alone" and role.toggle and not row.skip:
                found.setdefault(role.toggle, []).append(str(row.configuration[role.toggle]))
    return found


def print_report(report: Report, format_: OutputFormat) -> None:
    """Prints `report` in that format on standard output."""
    from gpubench.cli.reports import emit, snippet
    from gpubench.render.formats import render
    from gpubench.render.report_document import reports_content

    emit(render(reports_content([report], snippet), format_))
