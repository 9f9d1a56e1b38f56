"""The verdicts on time.

A change needs an effect of at least the limit that is significant; `unchanged` needs the limit to be ruled out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from gpubench.analysis.eligibility import gate
from gpubench.metrics import Metric, gated
from gpubench.regression.comparability import are_paired
from gpubench.regression.verdicts import Finding, Limits, Verdict, holm
from gpubench.report.model import Measurement, Report
from gpubench.stats.estimate import Estimate, from_pairs, paired, separate
from gpubench.stats.processes import PHASES, Statistic, p95
from gpubench.stats.spread import Spreads, spreads
from gpubench.stats.student import LARGEST, relative
from gpubench.units import format_percent, significant

Pair = tuple[Measurement, Measurement]  # (baseline, current)
LEVEL = 0.01  # one-sided, before the correction for the number of rows
RULED_OUT = 0.95  # one-sided confidence that an `unchanged` row did not get slower by the limit
FEWEST_PAIRS = 5
PAIRED_LOOKS = 2  # paired rounds are looked at so often, at most, before they are decided
SMALLEST_P = 0.0001  # smaller p-values are not printed exactly


def timed(
    pairs: Sequence[Pair], current: Report, baseline: Report, limits: Limits, family: int
) -> dict[str, list[Finding]]:
    """The findings of each pair on the gated metrics of its time, by the current row's id.

    Args:
        family: rows to correct for (Holm, by metric), if more than `pairs`: those still to be measured count too.
    """
    findings: dict[str, list[Finding]] = {new.id: [] for _, new in pairs}
    is_paired = are_paired(baseline, current)
    kind = current.device.kind
    run_spread = limits.between_runs(kind)
    for metric in gated():
        if metric.statistic is None:
            continue
        statistic, limit = metric.statistic, limits.share(metric, kind, is_paired)
        # Drift between phases does not matter here: both rows are of the same phase, and `run_spread` is the runs' own.
        between = None if is_paired else spreads([baseline, current], statistic, across_phases=False)
        estimates = [_estimate(old, new, statistic, between, run_spread) for old, new in pairs]
        known = [estimate for estimate in estimates if isinstance(estimate, Estimate)]
        rest = [1.0] * (family - len(known))
        by_direction = [holm([*(estimate.p_value(direction) for estimate in known), *rest]) for direction in (-1, 1)]
        p_values = map(min, *by_direction)
        for pair, estimate in zip(pairs, estimates, strict=True):
            p_value = next(p_values) if isinstance(estimate, Estimate) else 1.0
            finding = _finding(metric, pair, estimate, limit, p_value, max(len(known), family, 1))
            findings[pair[1].id].append(finding)
    return findings


def _estimate(
    old: Measurement, new: Measurement, statistic: Statistic, between: Spreads | None, run_spread: float
) -> Estimate | str:
    """The estimate of `new` against `old`, or why there is none."""
    # A disturbed paired round disturbed both sides, and widens the spread of their ratios.
    for name, row in (("baseline", old), ("current", new)):
        if why := gate(row, flags=between is not None):
            return f"the {name} figure is not reliable: {why}"
    if between is None:
        # Disturbed rounds stay in: without them, measuring more could leave fewer rounds.
        estimates = (paired(new, old, phase, statistic=statistic, disturbed=True) for phase in PHASES)
    else:
        estimates = (separate(new, old, phase, between, run_spread) for phase in PHASES)
    estimate = next((estimate for estimate in estimates if estimate), None)
    if estimate is None or (between is None and estimate.rounds < FEWEST_PAIRS):
        return "there are not enough processes of both in one phase"
    return estimate


def looks(estimate: Estimate) -> int:
    """How often the data of the estimate are looked at."""
    return 1 if estimate.method == "separate" else PAIRED_LOOKS


def level(estimate: Estimate) -> float:
    """The level of a one-sided test, corrected for the looks but not for the number of rows."""
    return LEVEL / looks(estimate)


def confidence(estimate: Estimate) -> float:
    """The confidence of the two-sided interval whose ends rule a limit out, so that it never contradicts a verdict."""
    return round(1 - 2 * (1 - RULED_OUT) / looks(estimate), 6)


def decide(estimate: Estimate, limit: float, p_value: float) -> Verdict:
    """The verdict, with the smaller of the two one-sided p-values, corrected for the number of rows."""
    if abs(estimate.log_ratio) >= math.log1p(limit) and p_value < level(estimate) and not estimate.assumed:
        return "regressed" if estimate.log_ratio < 0 else "improved"
    return "unchanged" if estimate.rules_out(limit, confidence(estimate)) else "inconclusive"


def _finding(metric: Metric, pair: Pair, estimate: Estimate | str, limit: float, p_value: float, rows: int) -> Finding:
    if isinstance(estimate, str):
        return Finding(metric=metric.name, verdict="inconclusive", reason=f"No verdict: {estimate}.", limit=limit)
    visible = estimate.detectable(level(estimate) / rows)
    verdict = decide(estimate, limit, p_value)
    reason = _reason(metric, estimate, verdict, limit, visible, p_value)
    if estimate.method != "separate" and (unfit := _unfit(pair, metric, limit)):
        verdict, reason = "inconclusive", unfit
    fps = metric.better == "higher"  # more time is fewer items per second
    low, high = estimate.interval(confidence(estimate))
    change, change_low, change_high = (estimate.log_ratio, low, high) if fps else (-estimate.log_ratio, -high, -low)
    return Finding(
        metric=metric.name,
        verdict=verdict,
        reason=reason,
        baseline=_figure(estimate.versus_log_time, pair[0], fps),
        current=_figure(estimate.log_time, pair[1], fps),
        unit=metric.unit,
        change=relative(change),
        change_low=relative(change_low),
        change_high=relative(change_high),
        confidence=confidence(estimate),
        limit=limit,
        detectable=visible,
        p_value=p_value,
        rounds=estimate.rounds,
    )


def _unfit(pair: Pair, metric: Metric, limit: float) -> str:
    """Why the rounds cannot decide: a side differs from itself by what would count as a change. Empty if they can."""
    for row in pair:
        itself = self_estimate(row, metric.statistic or "median")
        if itself is None or itself.rounds < FEWEST_PAIRS or abs(itself.log_ratio) < math.log1p(limit):
            continue
        if min(itself.p_value(1), itself.p_value(-1)) < level(itself):
            apart = format_percent(relative(-itself.log_ratio))
            return f"No verdict: two halves of one side's samples, which are identical work, differ by {apart}."
    return ""


def self_estimate(row: Measurement, statistic: Statistic) -> Estimate | None:
    """The control of a paired comparison: how far the row differs from itself; None below 2 interleaved rounds.

    Its turns in a round are split into halves in ABBA order. Both are of one copy of one model, so any difference
    between them is the machine's or the harness's.
    """
    pairs = []
    for part, samples in row.samples_by_round():
        if len(part.turns) < 4 or sum(part.turns) != len(samples):
            continue
        halves: tuple[list[float], list[float]] = ([], [])
        start = 0
        for index, count in enumerate(part.turns):
            halves[index % 4 in (1, 2)].extend(samples[start : start + count])
            start += count
        values = [statistics.median(half) if statistic == "median" else p95(half) for half in halves if half]
        if len(values) == 2 and min(values) > 0:
            pairs.append((math.log(values[0]), math.log(values[1])))
    return from_pairs(pairs, versus=row.id)


def _figure(log_time: float, row: Measurement, fps: bool) -> float:
    log_time = min(max(log_time, -LARGEST), LARGEST)
    return math.exp(-log_time) if fps else math.exp(log_time) * (row.items_per_step or 1)


def _reason(metric: Metric, estimate: Estimate, verdict: Verdict, limit: float, visible: float, p_value: float) -> str:
    what = "Time per item" if metric.statistic == "median" else "95th percentile of a step's time"
    low, high = estimate.interval(confidence(estimate))
    low_text, high_text = format_percent(relative(-high)), format_percent(relative(-low))
    interval = f"{100 * confidence(estimate):g} % interval {low_text} to {high_text}"
    words = f"{what} {format_percent(relative(-estimate.log_ratio))} ({interval}, {probability(p_value)})"
    if verdict == "regressed":
        return f"{words}; the limit is {limit:.1%} more."
    if verdict == "inconclusive":
        seen = f"smallest detectable slowdown {format_percent(visible, sign=False)}, limit {limit:.1%}"
        why = "; the noise is assumed, because nothing was measured in several processes" if estimate.assumed else ""
        return f"{words}: inconclusive; {seen}{why}."
    return f"{words}."


def probability(value: float) -> str:
    """`p = 0.0041`, or `p < 0.0001` for anything smaller."""
    return f"p = {significant(value, 2)}" if value >= SMALLEST_P else f"p < {SMALLEST_P}"
