"""Rows over time on the terminal and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpubench.regression.trends import LevelShift, Point, Series
from gpubench.render.check_cells import figure, percent
from gpubench.render.markdown import escape, line
from gpubench.text import plural, printable

BARS = "▁▂▃▄▅▆▇█"
LONGEST_LINE = 24  # points of a row that are drawn: the newest
HEADINGS = ("row", "points", "first", "last", "run spread", "over time", "shifts")


def title(series: Series) -> str:
    """`resnet50 inference, small, on NVIDIA H100, torch 2.13.0: FPS`."""
    version = f", torch {series.version}" if series.version else ""
    card = f" ({series.uuid})" if series.uuid else ""
    parameters = "".join(f", {name} {value}" for name, value in series.parameters.items())
    about = f"{series.workload} {series.mode}, {series.size}{parameters}, on {series.device}{card}{version}"
    return printable(f"{about}: {series.metric.replace('_', ' ')}")


def spark(points: Sequence[Point]) -> str:
    """The newest values as bars from the lowest to the highest; `x` where a row gave none."""
    recent = points[-LONGEST_LINE:]
    values = [point.value for point in recent if point.value is not None]
    if not values:
        return "x" * len(recent)
    low, span = min(values), max(values) - min(values)
    return "".join(
        "x" if point.value is None
        else BARS[round((len(BARS) - 1) * ((point.value - low) / span if span else 0.5))]
        for point in recent
    )  # fmt: skip


def cells(series: Series) -> tuple[str, ...]:
    """One row's texts, in the order of HEADINGS. The run spread is of two runs, as `check --run-spread` takes it."""
    values = [point.value for point in series.points]
    return (
        printable(series.id),
        str(len(values)),
        figure(values[0], series.unit),
        figure(values[-1], series.unit),
        percent(None if series.noise is None else math.sqrt(2) * series.noise, sign=False),
        spark(series.points),
        str(len(series.shifts)) if series.shifts else "",
    )


def sentence(series: Series, shift: LevelShift) -> str:
    """Where the level shifted, from what to what."""
    versions = f", torch {shift.versions}" if shift.versions else ""
    return printable(
        f"{series.id}: {percent(shift.change)} at {shift.at} ({shift.source}{versions}): "
        f"{figure(shift.before, series.unit)} to {figure(shift.after, series.unit)}"
    )


def too_short(found: Sequence[Series]) -> str:
    """What is to be said of rows with too few points to tell a shift; empty where all have enough."""
    short = sum(series.noise is None for series in found)
    return f"{plural(short, 'row has', 'rows have')} fewer than 4 figures: too few to tell a shift." if short else ""


def show(console: Console, found: Sequence[Series]) -> None:
    """Prints a table for each workload on each device, and a sentence for each shift."""
    for heading, group in groupby(found, title):
        members = list(group)
        console.print(Text(heading, style="bold"))
        table = Table(box=None, pad_edge=False, padding=(0, 1), collapse_padding=True, header_style="bold")
        for name in HEADINGS:
            table.add_column(Text(name), overflow="fold", justify="left" if name in ("row", "over time") else "right")
        for series in members:
            table.add_row(*map(Text, cells(series)), style="yellow" if series.shifts else "")
        console.print(table)
        for series in members:
            for shift in series.shifts:
                console.print(Text(f"- {sentence(series, shift)}"))
        console.print()
    if text := too_short(found):
        console.print(Text(text))


def history_markdown(found: Sequence[Series]) -> str:
    """The same as Markdown."""
    parts = []
    for heading, group in groupby(found, title):
        members = list(group)
        parts.append(f"## {escape(heading)}")
        lines = ["| " + " | ".join(HEADINGS) + " |", "|" + " --- |" * len(HEADINGS)]
        lines += ["| " + " | ".join(escape(text) for text in cells(series)) + " |" for series in members]
        parts.append("\n".join(lines))
        told = [f"- {line(sentence(series, shift))}" for series in members for shift in series.shifts]
        if told:
            parts.append("\n".join(told))
    if text := too_short(found):
        parts.append(text)
    return "\n\n".join(parts) + "\n"
