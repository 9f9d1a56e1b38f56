"""`gpubench report`: shows reports again, without torch."""

from __future__ import annotations

from typing import Annotated

import typer

from gpubench.cli.reports import ReportPaths, emit, load_all, snippet
from gpubench.render.formats import ReportFormat, render
from gpubench.render.report_document import reports_content


def report(
    reports: ReportPaths,
    format_: Annotated[
        ReportFormat,
        typer.Option("--format", help="json: the report itself, several as an array. csv: a row for each measurement."),
    ] = "table",
) -> None:
    """Show one or more reports again as a table, JSON, CSV or Markdown."""
    emit(render(reports_content([report for _, report in load_all(reports)], snippet), format_))
