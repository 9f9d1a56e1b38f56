"""`gpubench history`: rows over time, and where their level shifted."""

from __future__ import annotations

from typing import Annotated

import typer

from gpubench.cli.reports import ReportPaths, emit, load_all, tell
from gpubench.metrics import BUNDLED
from gpubench.regression.trends import history as series_of
from gpubench.render.formats import HistoryFormat, render
from gpubench.render.history_document import history_content
from gpubench.units import parse_share


def history(
    reports: ReportPaths,
    metric: Annotated[
        str,
        typer.Option(
            "--metric",
            metavar="METRIC",
            help=f"What to show: {', '.join(metric.name for metric in BUNDLED if metric.better)}, or a plug-in's.",
        ),
    ] = "fps",
    across_versions: Annotated[
        bool,
        typer.Option("--across-versions", help="One series over all versions of torch instead of one for each."),
    ] = False,
    min_shift: Annotated[str, typer.Option("--min-shift", metavar="SHARE", help="Smallest shift to report.")] = "2%",
    format_: Annotated[HistoryFormat, typer.Option("--format", help="Format of standard output.")] = "table",
) -> None:
    """Show each row of many reports over time and where its level shifted."""
    series = series_of(load_all(reports), metric, across_versions=across_versions, min_shift=parse_share(min_shift))
    if not series:
        tell("No rows to show: sides of ab comparisons and rows that were skipped are left out.")
    emit(render(history_content(series), format_))
