"""The verdicts on time: an effect of at least the limit that is significant, or the limit ruled out, or neither."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpubench.analysis.eligibility import gate
from gpubench.metrics import Metric, gated
from gpubench.regression.shifts import (
    LARGEST,
    Shift,
    Spreads,
    are_paired,
    p95,
    relative,
    self_shift,
    shift,
    spreads,
)
from gpubench.regression.verdicts import Finding, Limits, Verdict, holm
from gpubench.report.model import Measurement, Report
from gpubench.units import format_percent, significant

Pair = tuple[Measurement, Measurement]  # (baseline, current)
Statistic = Callable[[Sequence[float]], float]
STATISTICS: dict[str, Statistic] = {"median": statistics.median, "p95": p95}
SMALLEST_P = 0.0001  # below it they are not told any nearer


@dataclass(frozen=True)
class Timed:
    """One pair of rows in one metric."""

    old: Measurement
    new: Measurement
    shift: Shift | None
    why: str  # where there is no shift to rely on


def timed(
    pairs: Sequence[Pair], current: Report, baseline: Report, limits: Limits, family: int
) -> dict[str, list[Finding]]:
    """The findings of each pair on the gated metrics that have a statistic over processes, by the current row's id.

    Holm's correction is over `family` rows at least, by metric: those of `pairs`, and those still to come.
    """
    found: dict[str, list[Finding]] = {new.id: [] for _, new in pairs}
    kind, paired = current.device.kind, are_paired(baseline, current)
    run = limits.between_runs(kind)
    for metric in gated():
        if metric.statistic is None:
            continue
        statistic, limit = STATISTICS[metric.statistic], limits.share(metric, kind, paired)
        between = None if paired else spreads(baseline, current, statistic, run)
        members = [_member(old, new, statistic, between) for old, new in pairs]
        shifts = [one.shift for one in members if one.shift]
        rest = [1.0] * (family - len(shifts))
        slower, faster = (iter(holm([*(one.p_value(direction) for one in shifts), *rest])) for direction in (1, -1))
        for one in members:
            p_values = (next(slower), next(faster)) if one.shift else (1.0, 1.0)
            found[one.new.id].append(_finding(metric, one, limit, p_values, max(len(shifts), family, 1)))
    return found


def _member(old: Measurement, new: Measurement, statistic: Statistic, between: Spreads | None) -> Timed:
    # What disturbed a paired round disturbed both sides, and shows in the spread of their ratios.
    for name, row in (("the baseline's", old), ("the current", new)):
        if why := gate(row, flags=between is not None):
            return Timed(old, new, None, f"{name} figure cannot be relied on: {why}")
    moved = shift(old, new, statistic, between=between)
    return Timed(old, new, moved, "" if moved else "there are not enough processes of both in one phase")


def beyond(moved: Shift, limit: float) -> bool:
    """Whether a control moved by what would count as a change of a row."""
    return abs(moved.value) >= math.log1p(limit) and min(moved.p_value(1), moved.p_value(-1)) < moved.level


def _finding(metric: Metric, one: Timed, limit: float, p_values: tuple[float, float], rows: int) -> Finding:
    if one.shift is None:
        return Finding(metric=metric.name, verdict="inconclusive", reason=f"No verdict: {one.why}.", limit=limit)
    moved, visible = one.shift, one.shift.detectable(rows)
    verdict = decide(moved, limit, min(p_values))
    reason = _why(metric, moved, verdict, limit, visible, min(p_values))
    if moved.kind == "paired" and (unfit := _unfit(one, metric, limit)):
        verdict, reason = "inconclusive", unfit
    low, high = moved.interval()
    fps = metric.better == "higher"  # more time is fewer items per second
    return Finding(
        metric=metric.name,
        verdict=verdict,
        reason=reason,
        baseline=_figure(moved.before, one.old, fps),
        current=_figure(moved.after, one.new, fps),
        unit=metric.unit,
        change=relative(-moved.value if fps else moved.value),
        change_low=relative(-high if fps else low),
        change_high=relative(-low if fps else high),
        confidence=moved.confidence,
        limit=limit,
        detectable=visible,
        p_value=min(p_values),
        rounds=moved.rounds,
    )


def decide(moved: Shift, limit: float, p_value: float) -> Verdict:
    """The verdict, with the smaller of the two one-sided `p_value`, corrected for the number of rows."""
    if abs(moved.value) >= math.log1p(limit) and p_value < moved.level and not moved.assumed:
        return "regressed" if moved.value > 0 else "improved"
    return "unchanged" if moved.rules_out(limit) else "inconclusive"


def _unfit(one: Timed, metric: Metric, limit: float) -> str:
    """Why the rounds cannot decide: a side differs from itself by what would count as a change. Empty if they can."""
    statistic = STATISTICS[metric.statistic or "median"]
    for row in (one.old, one.new):
        found = self_shift(row, statistic)
        if found and beyond(found, limit):
            apart = format_percent(found.ratio)
            return f"No verdict: halves of one side's turns, which nothing tells apart, differ by {apart}."
    return ""


def _figure(log: float, row: Measurement, fps: bool) -> float:
    items = row.items_per_step or 1
    log = min(max(log, -LARGEST), LARGEST)
    return math.exp(-log) if fps else math.exp(log) * items


def _why(metric: Metric, moved: Shift, verdict: Verdict, limit: float, visible: float, p_value: float) -> str:
    what = "Time per item" if metric.statistic == "median" else "95th percentile of a step's time"
    low, high = (format_percent(relative(bound)) for bound in moved.interval())
    interval = f"{100 * moved.confidence:g} % interval {low} to {high}"
    words = f"{what} {format_percent(moved.ratio)} ({interval}, {probability(p_value)})"
    if verdict == "regressed":
        return f"{words}; {limit:.1%} more is the limit."
    if verdict == "inconclusive":
        seen = format_percent(visible, sign=False)
        repeats = ", as nothing was measured in several processes" if moved.assumed else ""
        return (
            f"{words}: {limit:.1%} more is neither shown nor ruled out; what would surely be seen is {seen}{repeats}."
        )
    return f"{words}."


def probability(value: float) -> str:
    """`p = 0.0041`, down to what is worth telling apart."""
    return f"p = {significant(value, 2)}" if value >= SMALLEST_P else f"p < {SMALLEST_P}"
