"""Which configuration to use: the best valid row of a report, or the simplest of those tied with it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from gpubench.analysis import reasons
from gpubench.analysis.effects import changed
from gpubench.analysis.eligibility import MIN_ROUNDS, exclusion, find, gate
from gpubench.analysis.peak_memory import RESOLUTION_BYTES, peak_bytes
from gpubench.analysis.speedup import log_time, paired_speedup, score, speedup, spread
from gpubench.report.model import Measurement, Objective, Recommendation, Report
from gpubench.stats.estimate import Estimate, separate
from gpubench.stats.processes import Phase
from gpubench.stats.spread import Spreads


@dataclass(frozen=True)
class Advice:
    """The recommendation, or None and the reasons; `excluded` says why a row cannot be recommended, by id."""

    recommendation: Recommendation | None
    reasons: list[str]
    excluded: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Field:
    """The valid rows, best first, and what they are ranked by."""

    report: Report
    objective: Objective
    rows: list[Measurement]
    phase: Phase
    spread: Spreads
    excluded: dict[str, str]


def recommend(report: Report, objective: Objective, max_memory_bytes: int | None = None) -> Advice:
    """The best valid configuration, with the reasons in sentences.

    Rows that differ by less than the noise are tied; a tie goes to a row of the final, then to the fewest changed
    toggles, then to the least memory.

    Args:
        objective: fps (most items per second), latency (fewest seconds per step) or memory (smallest peak). For the
            latter two only rows count whose step has as many items as the baseline's.
        max_memory_bytes: rows that need more are excluded.

    Example:
        advice = recommend(store.load(Path("report.json")), "fps")
        print(advice.recommendation.configuration if advice.recommendation else advice.reasons)
    """
    competing = _field(report, objective, max_memory_bytes)
    baseline = find(report, report.plan.baseline)
    if baseline is not None and baseline.status == "ok" and (why := gate(baseline)):
        # Any row may only look better than a baseline whose figure is unreliable.
        sentence = f"Nothing is recommended, because the baseline is not reliable: {why}. Measure again."
        return Advice(None, [sentence], {**competing.excluded, baseline.id: why})
    if not competing.rows:
        return Advice(None, reasons.nothing(report, competing.excluded), competing.excluded)
    best = competing.rows[0]
    tied = [row for row in competing.rows if _tied(competing, row)]
    # The final may show more noise than was assumed; rows that are tied only since then were not in it.
    fresh = [row for row in tied if log_time(row, "final") is not None]
    chosen = min(fresh or tied, key=lambda row: _simplicity(report, row))
    gain = _speedup(competing, chosen, baseline)
    beaten = None
    if baseline in competing.rows and gain is not None and gain.high < 1 and objective != "memory":
        # The final, whose data selected nothing, shows that the choice is slower than the baseline.
        beaten, chosen, tied, gain = chosen, baseline, [baseline], _speedup(competing, baseline, baseline)
    unconfirmed = _unconfirmed(competing, max_memory_bytes)
    control = _control(competing, baseline)
    choice = reasons.Choice(
        report, objective, chosen, best, tied, gain, competing.phase, competing.spread, unconfirmed, control, beaten
    )
    sentences = [*reasons.reasons(choice), *reasons.left_out(report, competing.excluded)]
    known = gain is not None and (gain.rounds >= MIN_ROUNDS or chosen is baseline)
    recommendation = Recommendation(
        id=chosen.id,
        configuration=chosen.configuration,
        objective=objective,
        speedup=gain.ratio if gain else None,
        speedup_low=gain.low if gain and known else None,
        speedup_high=gain.high if gain and known else None,
        versus=report.plan.baseline,
        reasons=sentences,
        tied_with=[row.id for row in tied if row.id != chosen.id],
        rounds=gain.rounds if gain and gain.phase != "explore" else 0,
        detectable=gain.detectable() if gain and gain.phase != "explore" and gain.method != "separate" else None,
        control=control.ratio if control else None,
        control_low=control.low if control and control.rounds >= MIN_ROUNDS else None,
        control_high=control.high if control and control.rounds >= MIN_ROUNDS else None,
        noise=_noise(competing),
    )
    return Advice(recommendation, sentences, competing.excluded)


def contenders(report: Report, objective: Objective, max_memory_bytes: int | None = None) -> list[str]:
    """Ids of the rows that are tied with the best while exploring, best first: the candidates of a runoff."""
    competing = _field(report, objective, max_memory_bytes, phase="explore")
    return [row.id for row in competing.rows if _tied(competing, row)]


def _unconfirmed(competing: Field, limit: int | None) -> list[Measurement]:
    """The contenders that were not in the runoff."""
    if competing.phase != "runoff":
        return []
    ids = set(contenders(competing.report, competing.objective, limit)) - {row.id for row in competing.rows}
    return [row for row in _field(competing.report, competing.objective, limit, "explore").rows if row.id in ids]


def _control(competing: Field, baseline: Measurement | None) -> Estimate | None:
    """The A/A control against the baseline, over the rounds of the final; None where there was none."""
    rows = competing.report.measurements
    control = next((row for row in rows if row.is_control and row.status == "ok"), None)
    return speedup(control, baseline, competing.spread, rows, ("final",)) if control and baseline else None


def _field(report: Report, objective: Objective, limit: int | None, phase: Phase | None = None) -> Field:
    excluded, rows = {}, []
    for row in report.measurements:
        if row.is_control:
            continue
        why = exclusion(report, row, objective, limit)
        if why is None and objective == "memory" and peak_bytes(row, report.device.kind) is None:
            why = "its memory was not measured"
        if why is None:
            rows.append(row)
        else:
            excluded[row.id] = why
    explored = _ranked(report, rows, objective, "explore")
    in_runoff = _ranked(report, rows, objective, "runoff")
    # The runoff counts only if the best row of exploring was in it: it may have been run for another objective or
    # memory limit, with other candidates.
    complete = bool(in_runoff) and (not explored or explored[0] in in_runoff)
    if complete and phase != "explore" and objective != "memory":
        return Field(report, objective, in_runoff, "runoff", spread(report), excluded)
    return Field(report, objective, explored, "explore", spread(report), excluded)


def _ranked(report: Report, rows: list[Measurement], objective: Objective, phase: Phase) -> list[Measurement]:
    """Those of `rows` that were measured in `phase`, best first."""
    measured = [row for row in rows if log_time(row, phase) is not None]
    return sorted(measured, key=lambda row: (_score(report, row, objective, phase), row.id))


def _score(report: Report, row: Measurement, objective: Objective, phase: Phase) -> float:
    """Lower is better. By time per item for `latency` too: all its rows have steps over equally many items."""
    if objective == "memory":
        value: float | None = peak_bytes(row, report.device.kind)
    else:
        value = score(row, find(report, report.plan.baseline), phase)
    return math.inf if value is None else value


def _tied(competing: Field, row: Measurement) -> bool:
    """Whether chance explains what `row` is worse than the best."""
    report, objective, phase, best = competing.report, competing.objective, competing.phase, competing.rows[0]
    if row is best:
        return True
    if objective != "memory":
        final = paired_speedup(best, row, "final", report.measurements)
        if final is not None and final.rounds >= MIN_ROUNDS and final.low > 1:
            return False
    difference = _score(report, row, objective, phase) - _score(report, best, objective, phase)
    return difference <= _threshold(competing, row)


def _threshold(competing: Field, row: Measurement) -> float:
    """The difference to the best row that chance explains: in bytes for the objective memory, else in log-time."""
    if competing.objective == "memory":
        return float(max(RESOLUTION_BYTES, _memory_repeat(competing.report)))
    best, phase = competing.rows[0], competing.phase
    estimate = paired_speedup(row, best, phase, competing.report.measurements)
    if estimate is None or estimate.rounds < MIN_ROUNDS:  # the interval of fewer is too wide to be useful
        estimate = separate(row, best, phase, competing.spread)
    return estimate.half_width() if estimate else math.inf


def _memory_repeat(report: Report) -> int:
    """The largest difference between rows of equal configuration, in bytes."""
    peaks: dict[object, list[int]] = {}
    for row in report.measurements:
        peak = peak_bytes(row, report.device.kind) if row.status == "ok" else None
        if peak is not None:
            peaks.setdefault(frozenset(row.configuration.items()), []).append(peak)
    return max((max(group) - min(group) for group in peaks.values()), default=0)


def _noise(competing: Field) -> float:
    """The threshold between the best row and the second, as a relative difference (0.02 is 2 %)."""
    best, *others = competing.rows
    threshold = _threshold(competing, others[0] if others else best)
    if competing.objective == "memory":
        return threshold / max(peak_bytes(best, competing.report.device.kind) or 0, 1)
    return math.expm1(threshold)


def _simplicity(report: Report, row: Measurement) -> tuple[int, float, str]:
    baseline = find(report, report.plan.baseline)
    peak = peak_bytes(row, report.device.kind)
    toggles = changed(row.configuration, baseline.configuration if baseline else None)
    return len(toggles), math.inf if peak is None else peak, row.id


def _speedup(competing: Field, row: Measurement, baseline: Measurement | None) -> Estimate | None:
    """None also where the baseline is not reliable: a ratio to it would be a false number."""
    if baseline is None or gate(baseline) is not None:
        return None
    if row.id == baseline.id:
        return Estimate(0.0, 0.0, 0.0, 1, len(row.rounds) or 1, "paired", "explore", baseline.id)
    return speedup(row, baseline, competing.spread, competing.report.measurements)
