"""`gpubench report`: shows reports again, without torch."""

from __future__ import annotations

from typing import Annotated

import typer

from gpubench.cli.options import OutputFormat
from gpubench.cli.reports import ReportPaths, emit, load_all, snippet
from gpubench.report.model import Report
from gpubench.report.store import encode


def report(
    reports: ReportPaths,
    format_: Annotated[
        OutputFormat,
        typer.Option("--format", help="json: the report itself, several as an array. csv: a row for each measurement."),
    ] = "table",
) -> None:
    """Show one or more reports again as a table, JSON, CSV or Markdown."""
    render_all([found for _, found in load_all(reports)], format_)


def render(report: Report, format_: OutputFormat) -> None:
    """Prints the report on standard output."""
    render_all([report], format_)


def render_all(reports: list[Report], format_: OutputFormat) -> None:
    """Prints the reports on standard output, as one JSON document or one CSV table where that is the format."""
    if format_ == "json":
        texts = [encode(each).decode() for each in reports]
        emit(texts[0] if len(texts) == 1 else f"[{','.join(texts)}]")
    elif format_ == "csv":
        from gpubench.render.csv import csv

        emit(csv(*reports))
    elif format_ == "markdown":
        from gpubench.render.markdown import markdown

        emit("\n".join(markdown(each, snippet=_code(each)) for each in reports))
    else:
        from rich.console import Console

        from gpubench.render.terminal import show

        console = Console(highlight=False)
        for index, each in enumerate(reports):
            if index:
                console.print()
            show(console, each, snippet=_code(each))


def _code(report: Report) -> str:
    return snippet(report, report.recommendation) if report.recommendation else ""
