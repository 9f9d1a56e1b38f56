"""Rows over time, with their level shifts.

Change points by PELT (Killick, Fearnhead, Eckley, JASA 107, 2012) from `ruptures`, with a squared-error cost on the
logarithms and a penalty in units of the noise between neighbouring reports.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

from msgspec import Struct

from gpubench.analysis.groups import when
from gpubench.analysis.table import Row, rows
from gpubench.metrics import Metric, get
from gpubench.regression.comparability import about
from gpubench.report.model import Configuration, Report

FEWEST = 4  # points: two on each side of a shift
SIDE = 2
# The penalty of a shift, in units of the noise's variance times log(n). False alarms in series without a shift
# (simulated, 30 to 6 points, noise estimated from them): 8 to 16 % at 3, 1 to 7 % at 6, 0.4 to 5 % at 8.
PENALTY = 6.0
MAD_TO_DEVIATION = 1.4826  # normal distribution


class Point(Struct, frozen=True, kw_only=True):
    """One report's figure of a row; None where there is none, `status` says why."""

    at: str  # created_at of the report
    source: str
    version: str  # of torch
    status: str
    value: float | None


class LevelShift(Struct, frozen=True, kw_only=True):
    """A change of level, from this point on."""

    at: str
    source: str
    before: float  # geometric mean of the points since the previous shift
    after: float
    change: float  # after / before - 1
    versions: str  # "2.12.0 to 2.13.0" where torch changed too; else empty


class Series(Struct, frozen=True, kw_only=True):
    """One row of one workload on one device."""

    workload: str
    mode: str
    size: str
    parameters: dict[str, str | int | float | bool]
    device: str
    uuid: str | None
    version: str  # of torch; empty for a series across versions
    id: str
    configuration: Configuration
    metric: str
    unit: str
    points: list[Point]
    shifts: list[LevelShift]
    noise: float | None  # standard deviation of the log between neighbouring reports; None: too few points


def history(
    reports: Sequence[tuple[str, Report]],
    metric: str = "fps",
    *,
    across_versions: bool = False,
    min_shift: float = 0.02,
) -> list[Series]:
    """A series of `metric` for each row, in order of time, without shifts smaller than `min_shift`.

    Raises GpubenchError for a metric that is not known.
    """
    chosen = get(metric)
    groups: dict[object, list[tuple[str, Report, Row]]] = defaultdict(list)
    for source, report in sorted(_runs(reports), key=lambda each: when(each[1])):
        version, device = "" if across_versions else report.environment.torch, report.device
        subject = (*about(report), device.kind, device.name, device.cores, device.uuid, version)
        for row in rows(report):
            if row.measurement.status != "skipped" and not row.measurement.is_control:
                configuration = frozenset(row.measurement.configuration.items())
                groups[subject, configuration].append((source, report, row))
    return [_series(members, chosen, across_versions, min_shift) for members in groups.values()]


def _runs(reports: Sequence[tuple[str, Report]]) -> list[tuple[str, Report]]:
    """Each run once, without copies that became baselines, and without the sides of A/B comparisons."""
    runs: dict[object, tuple[str, Report]] = {}
    for source, report in reports:
        device, starts = report.device, tuple(str(row.samples_s[:1]) for row in report.measurements)
        moments = (report.created_at, report.finished_at)
        key = (moments, about(report), device.name, device.uuid, report.plan.command, starts)
        if report.session is None and (key not in runs or runs[key][1].adopted):
            runs[key] = (source, report)
    return list(runs.values())


def _series(members: Sequence[tuple[str, Report, Row]], metric: Metric, across: bool, min_shift: float) -> Series:
    points = [
        Point(
            at=report.created_at,
            source=source,
            version=report.environment.torch,
            status=row.measurement.status,
            value=metric.value(report, row) if row.measurement.status == "ok" else None,
        )
        for source, report, row in members
    ]
    _, report, row = members[-1]
    timed = [point for point in points if point.value and point.value > 0]
    logs = [math.log(point.value or 1.0) for point in timed]
    return Series(
        workload=report.workload.name,
        mode=report.workload.mode,
        size=report.workload.size,
        parameters=report.workload.parameters,
        device=report.device.name,
        uuid=report.device.uuid,
        version="" if across else report.environment.torch,
        id=row.measurement.id,
        configuration=row.measurement.configuration,
        metric=metric.name,
        unit=metric.unit,
        points=points,
        shifts=_shifts(timed, logs, min_shift),
        noise=noise(logs) if len(logs) >= FEWEST else None,
    )


def _shifts(points: Sequence[Point], logs: Sequence[float], min_shift: float) -> list[LevelShift]:
    bounds = [0, *change_points(logs), len(logs)]
    found = []
    for start, middle, end in zip(bounds, bounds[1:], bounds[2:], strict=False):
        before, after = statistics.fmean(logs[start:middle]), statistics.fmean(logs[middle:end])
        change = math.expm1(after - before)
        if abs(change) < min_shift:
            continue
        last, first = points[middle - 1], points[middle]
        found.append(
            LevelShift(
                at=first.at,
                source=first.source,
                before=math.exp(before),
                after=math.exp(after),
                change=change,
                versions=f"{last.version} to {first.version}" if last.version != first.version else "",
            )
        )
    return found


def change_points(logs: Sequence[float]) -> list[int]:
    """The indexes at which a new level begins; none below `FEWEST` values."""
    if len(logs) < FEWEST:
        return []
    import numpy as np
    import ruptures

    # Of exact levels the noise is 0, and a penalty of 0 would find a shift between any two points.
    scaled = np.asarray(logs, dtype=float).reshape(-1, 1) / (noise(logs) or 1e-9)
    penalty = PENALTY * math.log(len(logs))
    # The cost of the linear kernel is the squared error. Compiled, so years of daily reports are fast.
    found = ruptures.KernelCPD(kernel="linear", min_size=SIDE).fit(scaled).predict(pen=penalty)
    return [int(index) for index in found[:-1]]


def noise(logs: Sequence[float]) -> float:
    """The standard deviation between neighbours, from the median of their differences, which is robust to shifts."""
    steps = [abs(later - earlier) for earlier, later in pairwise(logs)]
    return MAD_TO_DEVIATION * statistics.median(steps) / math.sqrt(2) if steps else 0.0
