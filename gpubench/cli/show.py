"""What a run prints to standard output: its report in one of the formats, or what it would measure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from gpubench.text import printable

if TYPE_CHECKING:
    from gpubench.cli.options import OutputFormat
    from gpubench.report.model import Report
    from gpubench.search.strategy import SearchSpace


def print_dry_run(matrix: SearchSpace, format_: OutputFormat) -> None:
    """Prints every configuration and every skip with its sentence."""
    rows = [matrix.baseline, *matrix.planned]
    outlook = matrix.strategy.outlook(matrix)
    if format_ == "json":
        import msgspec

        document = {
            "strategy": matrix.strategy.name,
            "configurations": [
                {"id": row.id, "configuration": row.configuration, "skipped": row.skip or None} for row in rows
            ],
            "ladder": outlook,
            "left_out": matrix.builder.left_out,
        }
        typer.echo(msgspec.json.format(msgspec.json.encode(document)).decode())
        return
    for row in rows:
        typer.echo(printable(f"skip     {row.skip}" if row.skip else f"measure  {row.id}"))
    for line in outlook:
        typer.echo(printable(f"ladder   {line}"))
    for name, reason in matrix.builder.left_out.items():
        typer.echo(printable(f"no       {name}: {reason}"))


def print_report(report: Report, format_: OutputFormat) -> None:
    """Prints `report` as table, JSON, CSV or Markdown."""
    from gpubench.cli.report import render

    render(report, format_)
