"""One report against its baseline: a verdict for each row and metric.

What does not depend on the machine's mood gates by itself: status, missing rows, output quality, graph breaks, memory.
Time needs both an effect (at least the limit) and significance (Student's t over processes or paired rounds, one-sided
1 %, Holm's correction for the number of rows); where the rounds could not have seen the limit, the verdict says so.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpubench.analysis import comparability
from gpubench.analysis.eligibility import gate
from gpubench.analysis.memory import RESOLUTION_BYTES, peak_bytes
from gpubench.analysis.shifts import Control, Shift, Spreads, are_paired, control, p95, shift, spreads
from gpubench.analysis.verdicts import Check, Finding, Limits, Metric, RowCheck, Verdict, holm, worst
from gpubench.errors import EXIT_INCOMPARABLE, EXIT_INCONCLUSIVE, EXIT_OK, EXIT_REGRESSION
from gpubench.results.schema import Configuration, Measurement, Report
from gpubench.text import plural
from gpubench.units import format_bytes, significant

EXIT_CODES: dict[Verdict, int] = {
    "regressed": EXIT_REGRESSION,
    "incomparable": EXIT_INCOMPARABLE,
    "inconclusive": EXIT_INCONCLUSIVE,
    "improved": EXIT_OK,
    "unchanged": EXIT_OK,
}
# Rows with these roles are there because the matrix asks for them; the others were picked by what the run measured.
ASKED = frozenset({"baseline", "alone", "grid", "sweep", "control"})
SMALL_ERROR = 1e-5  # relative error of outputs: below it, sums in another order explain any change


@dataclass(frozen=True)
class Source:
    """A report and where it was read from."""

    name: str
    report: Report


def check(current: Source, baseline: Source, limits: Limits, allow: Sequence[str] = ()) -> Check:
    """The verdicts on `current`; `incomparable` as a whole where a field that is not in `allow` differs."""
    unlike = comparability.differences(baseline.report, current.report)
    paired = are_paired(baseline.report, current.report)
    # Sides of one session may have other names and parameters: whether their work is the same was asked before.
    if not paired and comparability.about(baseline.report) != comparability.about(current.report):
        notes = ["The reports are about different workloads, modes, sizes or parameters."]
        return _result(current, baseline, limits, [], paired, "incomparable", notes=notes)
    refused = [one for one in unlike if one.field not in allow] if not paired else []
    allowed = [one.field for one in unlike if one.field in allow]
    if refused:
        texts = [str(one) for one in refused]
        return _result(current, baseline, limits, [], paired, "incomparable", differences=texts, allowed=allowed)
    rows, notes = _rows(current.report, baseline.report, limits)
    if all(row.verdict == "incomparable" for row in rows):
        notes.append("No row of the baseline is in the current report.")
    return _result(
        current, baseline, limits, rows, paired, worst([row.verdict for row in rows]),
        differences=[str(one) for one in unlike], allowed=allowed, notes=notes,
    )  # fmt: skip


def _result(
    current: Source,
    baseline: Source,
    limits: Limits,
    rows: list[RowCheck],
    paired: bool,
    verdict: Verdict,
    *,
    differences: Sequence[str] = (),
    allowed: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Check:
    report = current.report
    return Check(
        current=current.name,
        baseline=baseline.name,
        workload=report.workload.name,
        mode=report.workload.mode,
        device=report.device.name,
        paired=paired,
        verdict=verdict,
        exit_code=EXIT_CODES[verdict],
        limits=limits,
        rows=rows,
        differences=list(differences),
        allowed=list(allowed),
        notes=list(notes),
    )


def _rows(current: Report, baseline: Report, limits: Limits) -> tuple[list[RowCheck], list[str]]:
    """A check of each row that is in either report, in the baseline's order; and what to note beside them."""
    now = {_key(row.configuration): row for row in current.measurements}
    before = {_key(row.configuration): row for row in baseline.measurements}
    both = [(before[key], now[key]) for key in before if key in now]
    comparable = [pair for pair in both if all(row.status == "ok" for row in pair)]
    timed = _timed(comparable, current, baseline, limits)
    checked: list[RowCheck] = []
    for old, new in both:
        findings = _plain(old, new, current.device.kind, limits) + timed.get(new.id, [])
        checked.append(_row_check(new, findings))
    checked += [_missing(row, current) for key, row in before.items() if key not in now]
    fresh = [row for key, row in now.items() if key not in before]
    names = ", ".join(row.id for row in fresh[:3]) + (", ..." if len(fresh) > 3 else "")
    notes = [f"{plural(len(fresh), 'row is', 'rows are')} new: {names}."] if fresh else []
    return checked, notes


def _key(configuration: Configuration) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, str(value)) for name, value in configuration.items()))


def _row_check(row: Measurement, findings: list[Finding]) -> RowCheck:
    # Tails are so much noisier than medians that asking them for certainty would leave every row undecided.
    open_tail = ("latency_p95", "inconclusive")
    verdict = worst([one.verdict for one in findings if (one.metric, one.verdict) != open_tail])
    return RowCheck(id=row.id, configuration=row.configuration, verdict=verdict, findings=findings)


def _missing(row: Measurement, current: Report) -> RowCheck:
    if row.status == "skipped":
        finding = Finding(metric="status", verdict="unchanged", reason="It was skipped before, and is not there now.")
    elif not any(role.kind in ASKED for role in row.roles):
        reason = "It is not in the current report: the baseline's run picked it by what it had measured."
        finding = Finding(metric="status", verdict="incomparable", reason=reason)
    elif current.finished_at is None:
        reason = "It is not in the current report, which was cut off."
        finding = Finding(metric="status", verdict="inconclusive", reason=reason)
    else:
        finding = Finding(metric="status", verdict="regressed", reason="It is missing from the current report.")
    return _row_check(row, [finding])


# ----- what any machine tells alike


def _plain(old: Measurement, new: Measurement, kind: str, limits: Limits) -> list[Finding]:
    """Status; and where both are ok: items, output quality, graph breaks, memory and compile time."""
    found = [_status(old, new)]
    if old.status != "ok" or new.status != "ok":
        return found
    if old.items_per_step != new.items_per_step:
        reason = f"A step is over {new.items_per_step} items, it was over {old.items_per_step}."
        return [Finding(metric="fps", verdict="incomparable", reason=reason)]
    found += [_quality(old, new, limits), _graph_breaks(old, new), _memory(old, new, kind, limits)]
    return found


def _status(old: Measurement, new: Measurement) -> Finding:
    if old.status == new.status:
        return Finding(metric="status", verdict="unchanged", reason=f"It is {new.status}, as before.")
    words = f"It was {old.status} and is {new.status}{f': {new.reason}' if new.reason else '.'}"
    if old.status == "ok":
        return Finding(metric="status", verdict="regressed", reason=words)
    if new.status == "ok":
        return Finding(metric="status", verdict="improved", reason=words)
    return Finding(metric="status", verdict="unchanged", reason=words)


def _quality(old: Measurement, new: Measurement, limits: Limits) -> Finding:
    before = old.quality.relative_error if old.quality else None
    after = new.quality.relative_error if new.quality else None
    if old.quality and old.quality.passed and not (new.quality and new.quality.passed):
        why = new.quality.reason if new.quality else "no comparison was recorded"
        return Finding(metric="quality", verdict="regressed", reason=f"Outputs were right before, and now: {why}.")
    if before is None or after is None:
        return Finding(metric="quality", verdict="incomparable", reason="The outputs' error was not measured in both.")
    change = after / before - 1 if before else None
    return Finding(
        metric="quality",
        verdict=_grown(before, after, limits.error_growth) if max(before, after) > SMALL_ERROR else "unchanged",
        reason=f"Relative error of the outputs {after:.1e}, was {before:.1e}.",
        baseline=before,
        current=after,
        change=change,
        limit=limits.error_growth,
    )


def _graph_breaks(old: Measurement, new: Measurement) -> Finding:
    before, after = old.graph_breaks, new.graph_breaks
    if before is None or after is None:
        same = before is after
        words = "Nothing was compiled." if same else "Graph breaks were not counted in both."
        return Finding(metric="graph_breaks", verdict="unchanged" if same else "incomparable", reason=words)
    verdict: Verdict = "regressed" if after > before else "improved" if after < before else "unchanged"
    reason = f"Graph breaks: {after}, were {before}."
    return Finding(metric="graph_breaks", verdict=verdict, reason=reason, baseline=before, current=after, limit=0.0)


def _memory(old: Measurement, new: Measurement, kind: str, limits: Limits) -> Finding:
    before, after = peak_bytes(old, kind), peak_bytes(new, kind)
    if before is None or after is None:
        return Finding(metric="peak_memory", verdict="incomparable", reason="Memory was not measured in both.")
    # The resident memory of a process has a grain of its own; torch's CUDA allocator counts every byte.
    grain = RESOLUTION_BYTES if kind == "cpu" else 0
    return Finding(
        metric="peak_memory",
        verdict=_grown(before, after, limits.memory_growth, grain),
        reason=f"Peak memory {format_bytes(after)}, was {format_bytes(before)}.",
        baseline=before,
        current=after,
        unit="bytes",
        change=after / before - 1 if before else None,
        limit=limits.memory_growth,
    )


def _grown(before: float, after: float, limit: float, grain: float = 0.0) -> Verdict:
    """The verdict on a figure that is better the smaller it is: changes beyond the share and the grain count."""
    if abs(after - before) <= grain:
        return "unchanged"
    if after > before * (1 + limit):
        return "regressed"
    return "improved" if before > after * (1 + limit) else "unchanged"


# ----- time


@dataclass(frozen=True)
class _Timed:
    old: Measurement
    new: Measurement
    shift: Shift | None
    why: str  # where there is no shift to rely on


def _timed(
    pairs: Sequence[tuple[Measurement, Measurement]], current: Report, baseline: Report, limits: Limits
) -> dict[str, list[Finding]]:
    """The findings on time of each pair, by the row's id; Holm's correction is over all rows, by metric."""
    alike = [pair for pair in pairs if pair[0].items_per_step == pair[1].items_per_step]
    found: dict[str, list[Finding]] = {new.id: [] for _, new in alike}
    asked: list[tuple[Metric, Callable[[Sequence[float]], float], float]] = [
        ("fps", statistics.median, limits.slowdown),
        ("latency_p95", p95, limits.p95_growth),
    ]
    for metric, statistic, limit in asked:
        between = None if are_paired(baseline, current) else spreads(baseline, current, statistic)
        against = None
        if between is not None and current.confirmation is not None:
            chosen = current.confirmation.controls
            against = control([pair for pair in alike if pair[1].id in chosen], statistic, between)
        members = [_member(old, new, statistic, between, against) for old, new in alike]
        shifts = [one.shift for one in members if one.shift]
        slower, faster = (iter(holm([one.p_value(direction) for one in shifts])) for direction in (1, -1))
        for one in members:
            p_values = (next(slower), next(faster)) if one.shift else (1.0, 1.0)
            found[one.new.id].append(_time(metric, one, limit, p_values, len(shifts)))
    for old, new in alike:
        found[new.id].append(_compile_time(old, new, limits))
    return found


def _member(
    old: Measurement,
    new: Measurement,
    statistic: Callable[[Sequence[float]], float],
    between: Spreads | None,
    against: Control | None,
) -> _Timed:
    # What disturbed a paired round disturbed both sides, and shows in the spread of their ratios.
    for name, row in (("the baseline's", old), ("the current", new)):
        if why := gate(row, flags=between is not None):
            return _Timed(old, new, None, f"{name} figure cannot be relied on: {why}")
    moved = shift(old, new, statistic, between=between, against=against)
    return _Timed(old, new, moved, "" if moved else "there are not enough processes of both in one phase")


def _time(metric: Metric, one: _Timed, limit: float, p_values: tuple[float, float], rows: int) -> Finding:
    """Effect and significance both; without either it is unchanged only where the limit could have been seen."""
    if one.shift is None:
        return Finding(metric=metric, verdict="inconclusive", reason=f"No verdict: {one.why}.", limit=limit)
    moved, visible = one.shift, one.shift.detectable(max(rows, 1))
    low, high = moved.interval()
    significant_at = min(p_values)
    verdict: Verdict
    if abs(moved.value) >= math.log1p(limit) and significant_at < moved.level:
        verdict = "regressed" if moved.value > 0 else "improved"
    elif not visible <= limit or moved.value >= math.log1p(limit):
        verdict = "inconclusive"
    else:
        verdict = "unchanged"
    before, after = _figure(one.old, metric), _figure(one.new, metric)
    unit = f"{one.new.items_per_step} items" if metric == "fps" else "s"
    inverted = metric == "fps"  # more time is fewer items per second
    return Finding(
        metric=metric,
        verdict=verdict,
        reason=_why(metric, moved, verdict, limit, visible, significant_at),
        baseline=before,
        current=after,
        unit="1/s" if inverted else unit,
        change=1 / (1 + moved.ratio) - 1 if inverted else moved.ratio,
        change_low=1 / (1 + high) - 1 if inverted else low,
        change_high=1 / (1 + low) - 1 if inverted else high,
        limit=limit,
        detectable=visible,
        p_value=significant_at,
        rounds=moved.rounds,
    )


def _figure(row: Measurement, metric: Metric) -> float | None:
    if metric == "fps":
        return row.fps
    return row.latency_s.p95 if row.latency_s else None


def _why(metric: Metric, moved: Shift, verdict: Verdict, limit: float, visible: float, p_value: float) -> str:
    what = "Time per item" if metric == "fps" else "95th percentile of a step's time"
    low, high = moved.interval()
    words = f"{what} {moved.ratio:+.1%} (95 % interval {low:+.1%} to {high:+.1%}, p = {significant(p_value, 2)})"
    if verdict == "regressed":
        return f"{words}; {limit:.1%} more is the limit."
    if verdict == "inconclusive":
        return f"{words}: only {visible:.1%} or more would surely be seen here, the limit is {limit:.1%}."
    return f"{words}."


def _compile_time(old: Measurement, new: Measurement, limits: Limits) -> Finding:
    before, after = old.compile_time_s, new.compile_time_s
    compiled = str(new.configuration.get("compile", "off")) != "off"
    if not compiled:
        return Finding(metric="compile_time", verdict="unchanged", reason="Nothing was compiled.")
    warm = any(flag.startswith("warm_cache") for row in (old, new) for flag in row.flags)
    if before is None or after is None or warm or not before:
        return Finding(metric="compile_time", verdict="incomparable", reason="Not measured with a cold cache in both.")
    return Finding(
        metric="compile_time",
        verdict=_grown(before, after, limits.compile_growth),
        reason=f"The first call took {significant(after)} s, before {significant(before)} s.",
        baseline=before,
        current=after,
        unit="s",
        change=after / before - 1,
        limit=limits.compile_growth,
    )
