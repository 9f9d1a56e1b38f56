"""Rows over time as documents: one for each workload on each device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

from gpubench.metrics import get
from gpubench.regression.trends import LevelShift, Point, Series
from gpubench.render.check_document import percent
from gpubench.render.document import Column, Content, Document, Note, RowGroup, TableRow, table
from gpubench.text import plural

BARS = "▁▂▃▄▅▆▇█"
LONGEST_LINE = 24  # points of a row that are drawn: the newest
COLUMNS = (
    Column("row", "row", is_figure=False, folds=True),
    *(Column(name, name) for name in ("points", "first", "last", "run spread")),
    Column("over time", "over time", is_figure=False),
    Column("shifts", "shifts"),
)


def history_content(history: Sequence[Series]) -> Content:
    """The series of `regression.trends.history`."""
    return Content("history", lambda: history_documents(history), lambda: list(history))


def history_documents(history: Sequence[Series]) -> list[Document]:
    """A table for each workload on each device, with a sentence for each shift; last, which rows are too short."""
    documents = []
    for title, group in groupby(history, _title):
        members = list(group)
        shifts = (Note(_sentence(series, shift)) for series in members for shift in series.shifts)
        rows = RowGroup(tuple(map(_row, members)))
        documents.append(Document(title, table=table(COLUMNS, [rows]), notes=tuple(shifts)))
    if short := sum(series.noise is None for series in history):
        text = f"{plural(short, 'row has', 'rows have')} fewer than 4 figures: too few to detect a shift."
        documents.append(Document("", (text,)))
    return documents


def _title(series: Series) -> str:
    """`resnet50 inference, small, on NVIDIA H100, torch 2.13.0: FPS`."""
    version = f", torch {series.version}" if series.version else ""
    card = f" ({series.uuid})" if series.uuid else ""
    parameters = "".join(f", {name} {value}" for name, value in series.parameters.items())
    about = f"{series.workload} {series.mode}, {series.size}{parameters}, on {series.device}{card}{version}"
    return f"{about}: {get(series.metric).title}"


def _row(series: Series) -> TableRow:
    """The run spread is of two runs, as `check --run-spread` takes it."""
    values, quantity = [point.value for point in series.points], get(series.metric).quantity
    cells = (
        series.id,
        str(len(values)),
        quantity(values[0]),
        quantity(values[-1]),
        percent(None if series.noise is None else math.sqrt(2) * series.noise, sign=False),
        spark(series.points),
        str(len(series.shifts)) if series.shifts else "",
    )
    keys = (column.key for column in COLUMNS)
    return TableRow(dict(zip(keys, cells, strict=True)), "shifted" if series.shifts else "")


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


def _sentence(series: Series, shift: LevelShift) -> str:
    """Where the level shifted, from what to what."""
    quantity = get(series.metric).quantity
    versions = f", torch {shift.versions}" if shift.versions else ""
    return (
        f"{series.id}: {percent(shift.change)} at {shift.at} ({shift.source}{versions}): "
        f"{quantity(shift.before)} to {quantity(shift.after)}"
    )
