"""Which configuration to use: the best valid row of a report, or the simplest of those tied with it."""

from __future__ import annotations

from dataclasses import dataclass, field

from gpubench.analysis import reasons
from gpubench.analysis.eligibility import MIN_ROUNDS, gate, invalid_baseline
from gpubench.analysis.ranking import rank
from gpubench.analysis.speedup import Speedups
from gpubench.report.model import Measurement, Objective, Recommendation, Report
from gpubench.stats.estimate import Estimate
from gpubench.stats.processes import log_time


@dataclass(frozen=True)
class Advice:
    """The recommendation, or None and the reasons; `excluded` says why a row cannot be recommended, by id."""

    recommendation: Recommendation | None
    reasons: list[str]
    excluded: dict[str, str] = field(default_factory=dict)


def recommend(report: Report, objective: Objective, max_memory_bytes: int | None = None) -> Advice:
    """The best valid configuration, with the reasons in sentences.

    Rows that differ by less than the noise are tied; a tie goes to a row of the final, then to the simplest one.
    Nothing is recommended over a baseline that is not valid; one that does not fit into memory leaves the speed-up
    unknown.

    Args:
        objective: fps (most items per second), latency (fewest seconds per step) or memory (smallest peak). For the
            latter two only rows count whose step has as many items as the baseline's.
        max_memory_bytes: rows that need more are excluded.

    Example:
        advice = recommend(store.load(Path("report.json")), "fps")
        print(advice.recommendation.configuration if advice.recommendation else advice.reasons)
    """
    ranking, baseline = rank(report, objective, max_memory_bytes), report.baseline
    if baseline is not None and (why := invalid_baseline(report)):
        return Advice(None, [reasons.no_baseline(baseline, why)], {**ranking.excluded, baseline.id: why})
    if not ranking.rows:
        return Advice(None, reasons.nothing(report, ranking.excluded), ranking.excluded)
    tied = ranking.tied()
    # The final may show more noise than was assumed; rows that are tied only since then were not in it.
    fresh = [row for row in tied if log_time(row, "final") is not None]
    chosen = min(fresh or tied, key=ranking.simplicity)
    gain = _gain(ranking.speedups, chosen)
    if baseline in ranking.rows and gain is not None and gain.ratio < 1 and objective != "memory":
        chosen, tied, gain = baseline, [baseline], _gain(ranking.speedups, baseline)
    former = (row for row in ranking.selected if row is not baseline and log_time(row, "final") is not None)
    beaten = next(former, None) if chosen is baseline and objective != "memory" else None
    control = ranking.speedups.control
    twice = ranking.speedups.of(control, baseline, ("final",)) if control and baseline else None
    sentences = [
        *reasons.reasons(reasons.Choice(ranking, chosen, tied, gain, twice, beaten)),
        *reasons.left_out(report, ranking.excluded),
    ]
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
        control=twice.ratio if twice else None,
        control_low=twice.low if twice and twice.rounds >= MIN_ROUNDS else None,
        control_high=twice.high if twice and twice.rounds >= MIN_ROUNDS else None,
        noise=ranking.noise(),
    )
    return Advice(recommendation, sentences, ranking.excluded)


def _gain(speedups: Speedups, row: Measurement) -> Estimate | None:
    """Over the baseline; None also where that is not reliable: a ratio to it would be a false number."""
    baseline = speedups.report.baseline
    if baseline is None or gate(baseline) is not None:
        return None
    if row.id == baseline.id:
        return Estimate(0.0, 0.0, 0.0, 1, len(row.rounds) or 1, "paired", "explore", baseline.id)
    return speedups.of(row, baseline)
