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
    lines = [f"skip     {row.skip}" if row.skip else f"measure  {row.id}" for row in rows]
    lines += [f"ladder   {line}" for line in outlook]
    lines += [f"no       {name}: {reason}" for name, reason in matrix.builder.left_out.items()]
    for line in lines:
        typer.echo(printable(line))


def print_report(report: Report, format_: OutputFormat) -> None:
    """Prints `report` in that format on standard output."""
    from gpubench.cli.reports import emit, snippet
    from gpubench.render.formats import render
    from gpubench.render.report_document import reports_content

    emit(render(reports_content([report], snippet), format_))
