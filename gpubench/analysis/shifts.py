"""How far a row's time moved between two reports, with what chance explains.

Paired, where both reports are of one session: rounds that held both sides, whose differences cancel what the machine
did meanwhile. Else from two separate runs, whose machine may have been faster or slower as a whole; where suspects were
measured again beside rows that had not changed, those tell by how much.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from gpubench.analysis.noise import Spread, assumed_pair_spread, spread
from gpubench.analysis.phases import PHASES, Phase, of_phase, shared
from gpubench.analysis.statistics import MIN_PROCESSES, detection_factor
from gpubench.results.schema import Measurement, Report, Round

LEVEL = 0.01  # one-sided, before the correction for the number of rows
LOOKS = 2  # at most so often are paired rounds, and suspects measured again, looked at before they are decided
# Between two runs of one machine, beyond what their processes explain: standard deviation of the log-ratio, which
# cannot be seen from inside one run. CPU: seen between runs of 5 processes of resnet50 within 9 minutes on 2 cores of
# a shared machine (benchmarks/studies.py); vae had 0.09 there. GPU: assumed, not measured yet.
RUN_SPREAD = {"cpu": 0.036, "cuda": 0.01}
MIN_FREEDOM = 3  # a spread from fewer repeats is not relied upon
P95 = 0.95

Statistic = Callable[[Sequence[float]], float]


@dataclass(frozen=True)
class Shift:
    """log(current / baseline) of seconds per item: above 0 is slower."""

    value: float
    error: float  # standard error
    freedom: int  # degrees of freedom of `error`
    rounds: int  # pairs, or the processes of the side that has fewer
    kind: Literal["paired", "separate", "confirmed"]

    @property
    def level(self) -> float:
        """The level of the test, before the correction for the number of rows."""
        return LEVEL if self.kind == "separate" else LEVEL / LOOKS

    @property
    def ratio(self) -> float:
        """The relative change of the time: 0.05 is 5 % slower."""
        return math.expm1(self.value)

    def p_value(self, direction: int) -> float:
        """One-sided p of Student's t that the time went up (`direction` 1) or down (-1)."""
        from scipy.special import stdtr

        if self.error == 0:
            return 0.0 if self.value * direction > 0 else 1.0
        return float(stdtr(self.freedom, -direction * self.value / self.error))

    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the relative change."""
        from scipy.special import stdtrit

        half = float(stdtrit(self.freedom, 0.975)) * self.error
        return math.expm1(self.value - half), math.expm1(min(self.value + half, 700.0))

    def detectable(self, rows: int) -> float:
        """The smallest relative slowdown that is found with power 0.8 at `level`, corrected for `rows` tests."""
        return math.expm1(min(detection_factor(self.freedom, self.level / rows) * self.error, 700.0))


def p95(samples: Sequence[float]) -> float:
    """The 95th percentile, linear between samples."""
    ordered = sorted(samples)
    place = P95 * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def are_paired(baseline: Report, current: Report) -> bool:
    """Whether the two were measured in the same interleaved rounds."""
    return baseline.session is not None and baseline.session == current.session


def _paired(pairs: Sequence[float]) -> Shift | None:
    if len(pairs) < MIN_PROCESSES:
        return None
    error = statistics.stdev(pairs) / math.sqrt(len(pairs))
    return Shift(statistics.fmean(pairs), error, len(pairs) - 1, len(pairs), "paired")


def _logs(row: Measurement, phase: Phase, statistic: Statistic, *, disturbed: bool = False) -> dict[int, float]:
    """The logarithm of each process's figure in `phase`, by the index of its round.

    disturbed: with all processes, instead of those that `of_phase` holds to be undisturbed.
    """
    used = {id(part) for part in of_phase(row, phase)}
    found: dict[int, float] = {}
    for part, samples in samples_of(row):
        if samples and (id(part) in used or (disturbed and part.phase == phase)):
            value = statistic(samples)
            if value > 0:
                found[part.index] = math.log(value)
    return found


def samples_of(row: Measurement) -> list[tuple[Round, list[float]]]:
    """Each process of the row with its samples."""
    found, start = [], 0
    for part in row.rounds:
        found.append((part, row.samples_s[start : start + part.samples]))
        start += part.samples
    return found


@dataclass(frozen=True)
class Spreads:
    """The standard deviation of one process's log-figure over all repeats of both reports; None: too few repeats."""

    deviation: float | None
    freedom: int
    known: Spread  # what else is known of this machine, where they are too few


def spreads(baseline: Report, current: Report, statistic: Statistic) -> Spreads:
    """Pooled over rows and phases. Asked once for a comparison: it looks at every sample."""
    squares, freedom = 0.0, 0
    for report in (baseline, current):
        for row in report.measurements:
            for phase in PHASES if row.status == "ok" and len(row.rounds) > 1 else ():
                logs = list(_logs(row, phase, statistic).values())
                if len(logs) > 1:
                    squares += statistics.variance(logs) * (len(logs) - 1)
                    freedom += len(logs) - 1
    known = spread(current if current.calibration else baseline)
    return Spreads(math.sqrt(squares / freedom) if freedom >= MIN_FREEDOM else None, freedom, known)


@dataclass(frozen=True)
class Control:
    """By how much the machine itself moved, from rows that had not changed and were measured beside the suspects."""

    value: float
    variance: float


def control(pairs: Sequence[tuple[Measurement, Measurement]], statistic: Statistic, between: Spreads) -> Control | None:
    """The mean shift of the rows that were measured again as controls; None without any."""
    moved = [found for old, new in pairs if (found := shift(old, new, statistic, between=between, one_run=True))]
    if not moved:
        return None
    variance = math.fsum(one.error**2 for one in moved) / len(moved) ** 2
    return Control(statistics.fmean(one.value for one in moved), variance)


def shift(
    baseline: Measurement,
    current: Measurement,
    statistic: Statistic,
    *,
    between: Spreads | None,
    against: Control | None = None,
    one_run: bool = False,
) -> Shift | None:
    """The shift of `statistic` of the samples; None where no phase has figures of both rows.

    between: the spreads of two separate runs; None where both are of one session, so that rounds pair.
    against: what to take away from a row that was measured again, instead of allowing for what runs differ by.
    one_run: leave out what runs differ by, since only rows of the same two runs are compared.
    """
    scale = math.log((baseline.items_per_step or 1) / (current.items_per_step or 1))
    if between is None:
        return _paired([late - early + scale for early, late in _pairs(baseline, current, statistic)])
    before, after, confirmed = _sides(baseline, current, statistic)
    if not before or not after:
        return None
    value = statistics.fmean(after.values()) - statistics.fmean(before.values()) + scale
    deviation, freedom = between.deviation, between.freedom
    if deviation is None:
        # One process of two identical ones, by long experience instead of this run's own repeats.
        deviation, freedom = assumed_pair_spread(between.known, baseline, current) / math.sqrt(2), 1000
    variance = deviation**2 * (1 / len(before) + 1 / len(after))
    if confirmed and against is not None:
        value, variance = value - against.value, variance + against.variance
    elif not one_run:
        variance += RUN_SPREAD[between.known.device_kind] ** 2
    kind: Literal["separate", "confirmed"] = "confirmed" if confirmed else "separate"
    return Shift(value, math.sqrt(variance), freedom, min(len(before), len(after)), kind)


def _pairs(baseline: Measurement, current: Measurement, statistic: Statistic) -> list[tuple[float, float]]:
    """Both rows' log-figures of each round of the freshest phase that both have."""
    for phase in PHASES:
        rounds = shared([baseline, current], phase)[0]
        if rounds:
            sides = [_logs(row, phase, statistic, disturbed=True) for row in (baseline, current)]
            return [(sides[0][index], sides[1][index]) for index in rounds if all(index in side for side in sides)]
    return []


def _sides(
    baseline: Measurement, current: Measurement, statistic: Statistic
) -> tuple[dict[int, float], dict[int, float], bool]:
    """Both rows' figures by round, of the freshest phase that both have; and whether `current` was measured again.

    What was measured again ran alone in its process, as in exploring, so that is what it is held against.
    """
    again = _logs(current, "confirm", statistic)
    if again:
        return _logs(baseline, "explore", statistic), again, True
    for phase in PHASES:
        before, after = _logs(baseline, phase, statistic), _logs(current, phase, statistic)
        if before and after:
            return before, after, False
    return {}, {}, False
