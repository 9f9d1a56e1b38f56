"""Which configuration to use, from one report: the best valid row, or the simplest of those tied with it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from gpubench.analysis import reasons
from gpubench.analysis.effects import changed
from gpubench.analysis.eligibility import MIN_ROUNDS, exclusion, find, gate
from gpubench.analysis.memory import RESOLUTION_BYTES, peak_bytes
from gpubench.analysis.noise import Spread, key, pair_noise, spread
from gpubench.analysis.speedup import Phase, Speedup, log_latency, paired, shared_rounds, speedup
from gpubench.results.schema import Measurement, Objective, Recommendation, Report


@dataclass(frozen=True)
class Advice:
    """The recommendation, or None with the reasons why there is none; `excluded` says why other rows may not be it."""

    recommendation: Recommendation | None
    reasons: list[str]
    excluded: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Field:
    """The rows that compete, best first, and what is known of chance."""

    rows: list[Measurement]
    phase: Phase
    spread: Spread
    excluded: dict[str, str]


def recommend(report: Report, objective: Objective, max_memory_bytes: int | None = None) -> Advice:
    """The best valid configuration under `objective` and the memory limit, with reasons in sentences.

    fps: most items per second. latency: fewest seconds per step, and memory: smallest peak, both among rows whose step
    is over as many items as the baseline's. Rows that differ by less than the noise are tied; a tie goes to the fewest
    changed toggles, then to the least memory.
    """
    competing = _field(report, objective, max_memory_bytes)
    baseline = find(report, report.plan.baseline)
    if baseline is not None and baseline.status == "ok" and (why := gate(baseline)):
        # Whatever came out on top may only look better than a baseline whose figure is not to be relied on.
        sentence = f"Nothing is recommended, because there is no baseline to rely on: {why}. Measure again."
        return Advice(None, [sentence], {**competing.excluded, baseline.id: why})
    if not competing.rows:
        return Advice(None, reasons.nothing(report, competing.excluded), competing.excluded)
    best = competing.rows[0]
    tied = [row for row in competing.rows if _tied(report, best, row, objective, competing)]
    chosen = min(tied, key=lambda row: _simplicity(report, row))
    versus = find(report, report.plan.baseline)
    gain = _speedup(chosen, versus, competing.spread)
    unconfirmed = _unconfirmed(report, objective, max_memory_bytes, competing)
    choice = reasons.Choice(report, objective, chosen, best, tied, gain, competing.phase, competing.spread, unconfirmed)
    sentences = [*reasons.reasons(choice), *reasons.left_out(report, competing.excluded)]
    recommendation = Recommendation(
        id=chosen.id,
        configuration=chosen.configuration,
        objective=objective,
        speedup=gain.value if gain else None,
        speedup_low=gain.low if gain else None,
        speedup_high=gain.high if gain else None,
        versus=report.plan.baseline,
        reasons=sentences,
        tied_with=[row.id for row in tied if row.id != chosen.id],
        noise=_noise(report, best, competing, objective),
    )
    return Advice(recommendation, sentences, competing.excluded)


def contenders(report: Report, objective: Objective, max_memory_bytes: int | None = None) -> list[str]:
    """Ids of the rows that exploring cannot tell from the best, best first: what to confirm in fresh processes."""
    competing = _field(report, objective, max_memory_bytes, phase="explore")
    return [row.id for row in competing.rows if _tied(report, competing.rows[0], row, objective, competing)]


def _unconfirmed(report: Report, objective: Objective, limit: int | None, competing: Field) -> list[Measurement]:
    if competing.phase != "confirm":
        return []
    known = {row.id for row in competing.rows}
    rows = (find(report, id) for id in contenders(report, objective, limit) if id not in known)
    return [row for row in rows if row is not None]


def _field(report: Report, objective: Objective, limit: int | None, phase: Phase | None = None) -> Field:
    excluded, rows = {}, []
    for row in report.measurements:
        if any(role.kind == "control" for role in row.roles):
            continue  # the baseline once more, to see the noise
        why = exclusion(report, row, objective, limit)
        if why is None and objective == "memory" and peak_bytes(row, report.device.kind) is None:
            why = "its memory was not measured"
        if why is None:
            rows.append(row)
        else:
            excluded[row.id] = why
    explored = _ranked(report, [row for row in rows if log_latency(row, "explore") is not None], objective, "explore")
    confirmed = [row for row in rows if log_latency(row, "confirm") is not None]
    # Confirmed figures decide only where the row that exploring puts first was confirmed: rows confirmed under another
    # objective or memory limit are not the best candidates of this one.
    use_confirmed = bool(confirmed) and (not explored or explored[0] in confirmed)
    if phase != "explore" and use_confirmed and objective != "memory":
        return Field(_ranked(report, confirmed, objective, "confirm"), "confirm", spread(report), excluded)
    return Field(explored, "explore", spread(report), excluded)


def _ranked(report: Report, rows: list[Measurement], objective: Objective, phase: Phase) -> list[Measurement]:
    return sorted(rows, key=lambda row: (_score(report, row, objective, phase), row.id))


def _score(report: Report, row: Measurement, objective: Objective, phase: Phase) -> float:
    """Lower is better. Latency per item also for `latency`: all its rows have equal steps."""
    if objective == "memory":
        peak = peak_bytes(row, report.device.kind)
        return math.inf if peak is None else float(peak)
    baseline = find(report, report.plan.baseline)
    differences = shared_rounds(row, baseline) if phase == "confirm" and baseline else []
    if differences and baseline:
        anchor = log_latency(baseline, "confirm") or 0.0
        return anchor - math.fsum(differences) / len(differences)
    figure = log_latency(row, phase)
    return math.inf if figure is None else figure


def _tied(report: Report, best: Measurement, row: Measurement, objective: Objective, competing: Field) -> bool:
    if row.id == best.id:
        return True
    difference = _score(report, row, objective, competing.phase) - _score(report, best, objective, competing.phase)
    return difference <= _threshold(report, best, row, objective, competing)


def _threshold(report: Report, best: Measurement, row: Measurement, objective: Objective, competing: Field) -> float:
    """What chance explains: bytes for the objective memory, else a difference of log-latencies."""
    if objective == "memory":
        return float(max(RESOLUTION_BYTES, _memory_repeat(report)))
    differences = shared_rounds(row, best) if competing.phase == "confirm" else []
    if len(differences) >= MIN_ROUNDS:  # fewer have no paired interval of their own worth having
        return paired(differences)[1]
    return pair_noise(best, row, competing.phase, competing.spread)


def _memory_repeat(report: Report) -> int:
    """Bytes by which equal configurations, measured as rows of their own, differed at most."""
    peaks: dict[object, list[int]] = {}
    for row in report.measurements:
        peak = peak_bytes(row, report.device.kind) if row.status == "ok" else None
        if peak is not None:
            peaks.setdefault(key(row.configuration), []).append(peak)
    return max((max(group) - min(group) for group in peaks.values()), default=0)


def _noise(report: Report, best: Measurement, competing: Field, objective: Objective) -> float:
    """The threshold between the best row and the runner-up, as a relative difference (0.02 is 2 %)."""
    other = competing.rows[1] if len(competing.rows) > 1 else best
    threshold = _threshold(report, best, other, objective, competing)
    if objective == "memory":
        return threshold / max(peak_bytes(best, report.device.kind) or 0, 1)
    return math.expm1(threshold)


def _simplicity(report: Report, row: Measurement) -> tuple[int, float, str]:
    baseline = find(report, report.plan.baseline)
    peak = peak_bytes(row, report.device.kind)
    toggles = changed(row.configuration, baseline.configuration if baseline else None)
    return len(toggles), math.inf if peak is None else peak, row.id


def _speedup(row: Measurement, versus: Measurement | None, between: Spread) -> Speedup | None:
    """None also where the baseline has no figure to rely on: a ratio to it would be a false number."""
    if versus is None or gate(versus) is not None:
        return None
    if row.id == versus.id:
        return Speedup(1.0, 1.0, 1.0, versus.id, "explore", len(row.rounds) or 1)
    return speedup(row, versus, between)
