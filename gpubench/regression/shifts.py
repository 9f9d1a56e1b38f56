"""How far a row's time moved between two reports, with what chance explains.

Paired, where both reports are of one session: rounds that held both sides, whose differences cancel what the machine
did meanwhile. Else from two separate runs, whose machine may have been faster or slower as a whole.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from gpubench.analysis.noise import Spread, assumed_pair_spread, spread
from gpubench.analysis.phases import PHASES, Phase, of_phase
from gpubench.analysis.statistics import detection_factor
from gpubench.report.model import Measurement, Report, Round
from gpubench.toggles.traits import noise_group

LEVEL = 0.01  # one-sided, before the correction for the number of rows
# At most so often are paired rounds looked at before they are decided.
LOOKS = {"separate": 1, "paired": 2}
FEWEST_PAIRS = 5
RULED_OUT = 0.95  # one-sided: how sure it is that an `unchanged` row did not get slower by the limit
MIN_FREEDOM = 3  # a spread from fewer repeats is not relied upon
P95 = 0.95
LARGEST = 700.0  # exp of more overflows

Statistic = Callable[[Sequence[float]], float]


@dataclass(frozen=True)
class Shift:
    """log(current / baseline) of seconds per item: above 0 is slower."""

    value: float
    error: float  # standard error
    freedom: int  # degrees of freedom of `error`
    rounds: int  # pairs, or the processes of the side that has fewer
    kind: Literal["paired", "separate"]
    before: float = 0.0  # log-seconds per item, over the processes that `value` rests on
    after: float = 0.0
    assumed: bool = False  # nothing was repeated, so that the spread between processes is by experience alone

    @property
    def level(self) -> float:
        """The level of the test, before the correction for the number of rows."""
        return LEVEL / LOOKS[self.kind]

    @property
    def ratio(self) -> float:
        """The relative change of the time: 0.05 is 5 % slower."""
        return relative(self.value)

    def p_value(self, direction: int) -> float:
        """One-sided p of Student's t that the time went up (`direction` 1) or down (-1)."""
        from scipy.special import stdtr

        if self.error == 0:
            return 0.0 if self.value * direction > 0 else 1.0
        return float(stdtr(self.freedom, -direction * self.value / self.error))

    @property
    def sure(self) -> float:
        """One-sided: `RULED_OUT`, corrected for the number of looks."""
        return 1 - (1 - RULED_OUT) / LOOKS[self.kind]

    @property
    def confidence(self) -> float:
        """Of the interval: both of its ends are what `rules_out` goes by, so that it never speaks against a verdict."""
        return round(2 * self.sure - 1, 6)

    def interval(self) -> tuple[float, float]:
        """The interval of that `confidence`, as logarithms."""
        half = self._quantile(self.sure) * self.error
        return self.value - half, self.value + half

    def rules_out(self, limit: float) -> bool:
        """Whether it is sure (`RULED_OUT`) that the time did not grow by the share `limit`; never by assumption."""
        return not self.assumed and self.interval()[1] < math.log1p(limit)

    def detectable(self, rows: int) -> float:
        """The smallest relative slowdown that is found with power 0.8 at `level`, corrected for `rows` tests."""
        return relative(detection_factor(self.freedom, self.level / rows) * self.error)

    def _quantile(self, probability: float) -> float:
        from scipy.special import stdtrit

        return float(stdtrit(self.freedom, probability))


def relative(log: float) -> float:
    """A logarithm of a ratio as a relative change, within what a float holds."""
    return math.expm1(min(max(log, -LARGEST), LARGEST))


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


def _paired(pairs: Sequence[tuple[float, float]]) -> Shift | None:
    if len(pairs) < FEWEST_PAIRS:
        return None
    ratios = [late - early for early, late in pairs]
    before, after = (statistics.fmean(pair[side] for pair in pairs) for side in (0, 1))
    error = statistics.stdev(ratios) / math.sqrt(len(pairs))
    return Shift(statistics.fmean(ratios), error, len(pairs) - 1, len(pairs), "paired", before, after)


def _logs(row: Measurement, phase: Phase, statistic: Statistic, *, disturbed: bool = False) -> dict[int, float]:
    """The logarithm of each process's figure per item in `phase`, by the index of its round.

    disturbed: with all processes, instead of those that `of_phase` holds to be undisturbed.
    """
    used = {id(part) for part in of_phase(row, phase)}
    items = math.log(row.items_per_step or 1)
    found: dict[int, float] = {}
    for part, samples in samples_of(row):
        if samples and (id(part) in used or (disturbed and part.phase == phase)):
            value = statistic(samples)
            if value > 0:
                found[part.index] = math.log(value) - items
    return found


def samples_of(row: Measurement) -> list[tuple[Round, list[float]]]:
    """Each process of the row with its samples."""
    found, start = [], 0
    for part in row.rounds:
        found.append((part, row.samples_s[start : start + part.samples]))
        start += part.samples
    return found


@dataclass(frozen=True)
class Repeats:
    """The standard deviation of one process's log-figure over repeats, with its degrees of freedom."""

    deviation: float
    freedom: int


@dataclass(frozen=True)
class Spreads:
    """Of both reports, by the noise group of a row: it decides how much identical processes differ."""

    by_group: dict[str, Repeats]
    known: Spread  # what else is known of this machine, where they are too few
    run: float  # of two whole runs, beyond what their processes explain; it cannot be seen from inside one run
    statistic: Statistic

    def of(self, baseline: Measurement, current: Measurement) -> tuple[float, int, bool]:
        """Standard deviation of one process of such rows, its degrees of freedom, and whether it is assumed."""
        pooled = self.by_group.get(noise_group(current.configuration), Repeats(0.0, 0))
        own = _repeats([baseline, current], self.statistic)
        # Rows are not all as steady as each other: one that was seen to be less so is taken at its own spread.
        found = own if own.freedom >= MIN_FREEDOM and own.deviation > pooled.deviation else pooled
        if found.freedom >= MIN_FREEDOM:
            return found.deviation, found.freedom, False
        # One process of two identical ones, by long experience instead of this run's own repeats.
        return assumed_pair_spread(self.known, baseline, current) / math.sqrt(2), 1000, True


def spreads(baseline: Report, current: Report, statistic: Statistic, run: float) -> Spreads:
    """Pooled over rows and phases. Asked once for a comparison: it looks at every sample.

    run: the standard deviation of the log-ratio of two whole runs of this machine.
    """
    groups: dict[str, list[Measurement]] = {}
    for report in (baseline, current):
        for row in report.measurements:
            if not row.is_control:
                groups.setdefault(noise_group(row.configuration), []).append(row)
    found = {kind: _repeats(rows, statistic) for kind, rows in groups.items()}
    return Spreads(found, spread(baseline), run, statistic)


def _repeats(rows: Sequence[Measurement], statistic: Statistic) -> Repeats:
    """Pooled over what each of `rows` repeated in each phase."""
    squares, freedom = 0.0, 0
    for row in rows:
        phases = {part.phase for part in row.rounds} if row.status == "ok" and len(row.rounds) > 1 else ()
        for phase in phases:
            logs = list(_logs(row, phase, statistic).values())
            if len(logs) > 1:
                mean = statistics.fmean(logs)
                squares += math.fsum((value - mean) ** 2 for value in logs)
                freedom += len(logs) - 1
    return Repeats(math.sqrt(squares / freedom) if freedom else 0.0, freedom)


def shift(
    baseline: Measurement,
    current: Measurement,
    statistic: Statistic,
    *,
    between: Spreads | None,
) -> Shift | None:
    """The shift of `statistic` of the samples; None where no phase has figures of both rows.

    between: the spreads of two separate runs; None where both are of one session, so that rounds pair.
    """
    if between is None:
        return _paired(_pairs(baseline, current, statistic))
    before, after = _sides(baseline, current, statistic)
    if not before or not after:
        return None
    levels = statistics.fmean(before.values()), statistics.fmean(after.values())
    value = levels[1] - levels[0]
    deviation, freedom, assumed = between.of(baseline, current)
    variance = deviation**2 * (1 / len(before) + 1 / len(after)) + between.run**2
    return Shift(value, math.sqrt(variance), freedom, min(len(before), len(after)), "separate", *levels, assumed)


def _pairs(baseline: Measurement, current: Measurement, statistic: Statistic) -> list[tuple[float, float]]:
    """Both rows' log-figures of each round of the freshest phase that both have: all of them.

    What disturbed a round disturbed both sides; leaving some out could leave fewer the more were measured.
    """
    for phase in PHASES:
        before, after = (_logs(row, phase, statistic, disturbed=True) for row in (baseline, current))
        if rounds := [index for index in before if index in after]:
            return [(before[index], after[index]) for index in rounds]
    return []


def _sides(
    baseline: Measurement, current: Measurement, statistic: Statistic
) -> tuple[dict[int, float], dict[int, float]]:
    """Both rows' figures by round, of the freshest phase that both have."""
    for phase in PHASES:
        before, after = _logs(baseline, phase, statistic), _logs(current, phase, statistic)
        if before and after:
            return before, after
    return {}, {}


# ----- the control that every paired comparison carries


def halves(row: Measurement, statistic: Statistic) -> list[tuple[float, float]]:
    """A row against itself: log-figures of two halves of its turns in each interleaved round, in ABBA order.

    Both halves are of one copy of one model, so that any difference between them is the machine's or the harness's.
    """
    found = []
    for part, samples in samples_of(row):
        if len(part.turns) < 4 or sum(part.turns) != len(samples):
            continue
        sides: tuple[list[float], list[float]] = ([], [])
        start = 0
        for index, count in enumerate(part.turns):
            sides[index % 4 in (1, 2)].extend(samples[start : start + count])
            start += count
        figures = [statistic(side) for side in sides if side]
        if len(figures) == 2 and min(figures) > 0:
            found.append((math.log(figures[0]), math.log(figures[1])))
    return found


def self_shift(row: Measurement, statistic: Statistic) -> Shift | None:
    """How far a row differs from itself over its interleaved rounds; None below `FEWEST_PAIRS` of them."""
    return _paired(halves(row, statistic))
