"""`gpubench history`: rows over time, and where their level shifted."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import typer

from gpubench.cli.reports import ReportPaths, emit, load_all
from gpubench.regression.trends import HistoryMetric
from gpubench.regression.trends import history as series_of
from gpubench.text import encodable
from gpubench.units import parse_share


def history(
    reports: ReportPaths,
    metric: Annotated[HistoryMetric, typer.Option("--metric", help="What is shown.")] = "fps",
    across_versions: Annotated[
        bool,
        typer.Option("--across-versions", help="One series over all versions of torch, instead of one for each."),
    ] = False,
    min_shift: Annotated[
        str, typer.Option("--min-shift", metavar="SHARE", help="Shifts that are smaller are not told.")
    ] = "2%",
    format_: Annotated[
        Literal["table", "json", "markdown"], typer.Option("--format", help="What goes to standard output.")
    ] = "table",
) -> None:
    """Show each row of many reports over time, with the points at which its level shifted."""
    share = parse_share(min_shift)
    found = series_of(
        [(encodable(name), one) for name, one in load_all(reports)],
        metric,
        across_versions=across_versions,
        min_shift=share,
    )
    if format_ == "json":
        emit(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    elif format_ == "markdown":
        from gpubench.render.trend_lines import history_markdown

        emit(history_markdown(found))
    else:
        from rich.console import Console

        from gpubench.render.trend_lines import show

        show(Console(highlight=False), found)
