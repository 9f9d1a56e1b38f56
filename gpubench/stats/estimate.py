"""How much faster one row is than another: the one estimate behind speedups, ties and regression checks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from gpubench.report.model import Measurement
from gpubench.stats import student
from gpubench.stats.processes import Phase, Statistic, log_times, shared
from gpubench.stats.spread import Spreads

P5_TO_P95 = 3.29  # in standard deviations of a normal distribution
FEW_PROCESSES = 3  # from this many on, their own spread shows how certain their medians are
MEDIAN_FACTOR = 1.2533  # standard error of a median over that of a mean, normal distribution
# Paired by round; paired, with the error pooled over all rows of those rounds; or of processes run at different times.
Method = Literal["paired", "pooled", "separate"]


@dataclass(frozen=True)
class Estimate:
    """The log-ratio of two rows' seconds per item, with its standard error. Above 0: the row is faster than `versus`.

    Both times are geometric means over the processes that the ratio rests on.
    """

    log_time: float  # log(seconds per item) of the row
    versus_log_time: float
    error: float  # standard error of the log-ratio
    freedom: int  # degrees of freedom of `error`
    rounds: int  # rounds that have both rows, or the processes of the row that has fewer
    method: Method
    phase: Phase = "final"
    versus: str = ""  # id of the other row
    assumed: bool = False  # `error` is by experience, because too little was repeated to measure it
    bias: float = 0.0  # log-ratio of two identical rows in the same rounds; no interval is narrower

    @property
    def log_ratio(self) -> float:
        """log(time of `versus` / time of the row)."""
        return self.versus_log_time - self.log_time

    @property
    def ratio(self) -> float:
        """The speedup: 2 is twice as fast."""
        return _exp(self.log_ratio)

    @property
    def low(self) -> float:
        """Lower 95 % bound of the speedup."""
        return _exp(self.interval()[0])

    @property
    def high(self) -> float:
        """Upper 95 % bound of the speedup."""
        return _exp(self.interval()[1])

    def half_width(self, confidence: float = student.CONFIDENCE) -> float:
        """Half of the two-sided interval of the log-ratio."""
        return max(student.quantile(self.freedom, confidence) * self.error, self.bias)

    def interval(self, confidence: float = student.CONFIDENCE) -> tuple[float, float]:
        """The two-sided interval of the log-ratio."""
        half = self.half_width(confidence)
        return self.log_ratio - half, self.log_ratio + half

    def p_value(self, direction: Literal[1, -1]) -> float:
        """One-sided p-value that the row is faster (1) or slower (-1)."""
        return student.p_value(direction * self.log_ratio, self.error, self.freedom)

    def detectable(self, level: float = student.DETECTION_LEVEL) -> float:
        """The smallest relative slowdown that a one-sided test at `level` detects with power 0.8 (0.05: 5 %)."""
        return student.detectable(self.error, self.freedom, level)

    def rules_out(self, slowdown: float, confidence: float) -> bool:
        """Whether the two-sided interval excludes a relative `slowdown`; an assumed error excludes nothing."""
        return not self.assumed and self.interval(confidence)[0] > -math.log1p(slowdown)


def from_pairs(pairs: Sequence[tuple[float, float]], phase: Phase = "final", versus: str = "") -> Estimate | None:
    """From (row, versus) log-times of the same rounds; None below 2 of them."""
    if len(pairs) < 2:
        return None
    error = statistics.stdev(other - own for own, other in pairs) / math.sqrt(len(pairs))
    own, other = (math.fsum(pair[side] for pair in pairs) / len(pairs) for side in (0, 1))
    return Estimate(own, other, error, len(pairs) - 1, len(pairs), "paired", phase, versus)


def paired(
    row: Measurement,
    versus: Measurement,
    phase: Phase,
    *,
    pooled: tuple[float, int, int] | None = None,
    statistic: Statistic = "median",
    disturbed: bool = False,
) -> Estimate | None:
    """From the rounds of `phase` that both rows have, which cancels what the machine did; None below 2 rounds.

    Args:
        pooled: the `two_way_error` of all rows. It replaces the pair's own where they took part in the same rounds.
        disturbed: keep disturbed rounds even where there are enough others.
    """
    own, other = shared([row, versus], phase, statistic, disturbed=disturbed)
    estimate = from_pairs([(own[key], other[key]) for key in own if key in other], phase, versus.id)
    if estimate is None or pooled is None or pooled[2] != estimate.rounds:
        return estimate
    return replace(estimate, error=pooled[0], freedom=pooled[1], method="pooled")


def two_way_error(rows: Sequence[Measurement], phase: Phase) -> tuple[float, int, int] | None:
    """The standard error of a difference of two rows over the rounds, with its degrees of freedom and the rounds.

    Pooled over those of `rows` that took part in most rounds, because rounds are few. None below 2 rows or rounds,
    and in a final, which has the rounds to stand by itself. Two-way layout without interaction: the mean of a round is
    what the machine did, the mean of a row its speed.
    """
    if phase == "final":
        return None
    counts = [sum(part.phase == phase for part in row.rounds) for row in rows]
    most = max(counts, default=0)
    times = shared([row for row, count in zip(rows, counts, strict=True) if count == most], phase)
    rounds = len(times[0]) if times else 0
    if len(times) < 2 or rounds < 2:
        return None
    table = [[values[key] for key in sorted(values)] for values in times]
    grand = math.fsum(map(math.fsum, table)) / (len(table) * rounds)
    by_row = [math.fsum(values) / rounds for values in table]
    by_round = [math.fsum(column) / len(table) for column in zip(*table, strict=True)]
    squares = math.fsum(
        (value - of_row - of_round + grand) ** 2
        for values, of_row in zip(table, by_row, strict=True)
        for value, of_round in zip(values, by_round, strict=True)
    )
    freedom = (len(table) - 1) * (rounds - 1)
    return math.sqrt(squares / freedom) * math.sqrt(2 / rounds), freedom, rounds


def separate(
    row: Measurement, versus: Measurement, phase: Phase, spreads: Spreads, run_spread: float = 0.0
) -> Estimate | None:
    """From processes of `phase` that ran at different times; None where a row has none.

    Args:
        spreads: how much identical processes differ.
        run_spread: standard deviation of the log-ratio of two whole runs, beyond what their processes explain. It
            cannot be seen from inside one run.
    """
    own, other = (list(log_times(side, phase, spreads.statistic).values()) for side in (row, versus))
    if not own or not other:
        return None
    spread = spreads.of(versus, row)
    error, freedom = math.sqrt(spread.deviation**2 * (1 / len(own) + 1 / len(other)) + run_spread**2), spread.freedom
    if spreads.statistic == "median":
        # Of few processes the medians may be uncertain by more than processes differ: their samples vary that much.
        within = math.hypot(
            *(_error_within(side) for side, logs in ((row, own), (versus, other)) if len(logs) < FEW_PROCESSES)
        )
        if student.NORMAL_QUANTILE * within > student.quantile(freedom) * error:
            error, freedom = within, student.LARGE_FREEDOM
    means = (statistics.fmean(own), statistics.fmean(other))
    rounds = min(len(own), len(other))
    return Estimate(*means, error, freedom, rounds, "separate", phase, versus.id, assumed=spread.assumed)


def _error_within(row: Measurement) -> float:
    """Standard error of the logarithm of the row's median over its samples; 0 where it has none."""
    latency, count = row.latency_s, len(row.samples_s)
    if latency is None or latency.p5 <= 0 or not count:
        return 0.0
    return MEDIAN_FACTOR * math.log(latency.p95 / latency.p5) / P5_TO_P95 / math.sqrt(count)


def _exp(log_ratio: float) -> float:
    return math.exp(min(log_ratio, student.LARGEST))
