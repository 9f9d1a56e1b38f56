"""How far two rows may differ by chance alone, as a difference of log-latencies (0.02 is about 2 %).

One process's samples say nothing of the spread between processes, which is far larger. So the spread is estimated
from configurations that were measured in several processes, and assumed where there are too few of them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from gpubench.analysis.phases import Phase, of_phase, shared
from gpubench.analysis.statistics import NORMAL_QUANTILE, t_quantile
from gpubench.report.model import Configuration, Measurement, Report
from gpubench.toggles.traits import noise_group

# Spread (standard deviation) of the log-ratio between two identical processes, seen over 8 pairs and 12 rounds on a
# 2-core CPU with torch 2.13: with the allocator held steady, and with glibc's default one, whose mmap threshold moves
# with each process's history.
PAIR_SPREAD_STEADY = 0.019
PAIR_SPREAD_SYSTEM_ALLOCATOR = 0.103
MIN_DEGREES_OF_FREEDOM = 3  # with fewer, Student's factor is above 4 and would tie everything with everything
P5_TO_P95 = 3.29  # in standard deviations of a normal distribution
MEDIAN_FACTOR = 1.2533  # standard error of a median over that of a mean, normal distribution


@dataclass(frozen=True)
class Spread:
    """Between processes: standard deviation of log-latency. `repeats` leaves out each configuration's first."""

    deviation: float | None
    repeats: int
    device_kind: str

    @property
    def measured(self) -> bool:
        """Whether there were enough repeats to rely on."""
        return self.deviation is not None and self.repeats >= MIN_DEGREES_OF_FREEDOM


@dataclass(frozen=True)
class Interleaved:
    """What is left of log-latency in interleaved rounds once rows' and rounds' own means are taken away."""

    deviation: float  # of one process
    freedom: int
    rounds: int

    @property
    def half_width(self) -> float:
        """95 % half-width of the difference between two rows' means over the rounds."""
        return t_quantile(self.freedom) * self.deviation * math.sqrt(2 / self.rounds)

    @property
    def pair_spread(self) -> float:
        """Standard deviation of the log-ratio of two rows within one round."""
        return math.sqrt(2) * self.deviation


def process_values(row: Measurement, phase: Phase | None = None) -> list[float]:
    """Seconds per item, one figure for each process of `phase` (None: of any); empty where none is above 0."""
    items = row.items_per_step or 1
    medians = [part.median_s for part in of_phase(row, phase)]
    if not row.rounds and row.latency_s and phase in (None, "explore"):
        medians = [row.latency_s.median]
    return [median / items for median in medians if median > 0]


def key(configuration: Configuration) -> tuple[tuple[str, str | int], ...]:
    """The same for the same configuration, whatever its order."""
    return tuple(sorted(configuration.items()))


def spread(report: Report) -> Spread:
    """The pooled spread between processes over all configurations that were measured more than once."""
    groups: dict[tuple[tuple[str, str | int], ...], list[float]] = defaultdict(list)
    for row in report.measurements:
        # A control shares its rounds with the baseline, perhaps its processes: it is no repeat of its own.
        if row.status == "ok" and not row.is_control:
            groups[key(row.configuration)].extend(math.log(value) for value in process_values(row))
    squares, freedom = 0.0, 0
    for logs in groups.values():
        if len(logs) > 1:
            mean = math.fsum(logs) / len(logs)
            squares += math.fsum((value - mean) ** 2 for value in logs)
            freedom += len(logs) - 1
    return Spread(math.sqrt(squares / freedom) if freedom else None, freedom, report.device.kind)


def interleaved(rows: Sequence[Measurement], phase: Phase) -> Interleaved | None:
    """The noise of `phase`, pooled over those of `rows` that took part in most of its rounds; None below 2 by 2.

    Two-way layout without interaction: the round's mean holds what the machine did meanwhile, the row's its speed.
    """
    counts = [sum(part.phase == phase for part in row.rounds) for row in rows]
    most = max(counts, default=0)
    found = shared([row for row, count in zip(rows, counts, strict=True) if count == most or len(rows) == 2], phase)
    indexes = list(found[0]) if found else []
    if len(found) < 2 or len(indexes) < 2:
        return None
    table = [[math.log(values[index]) for index in indexes] for values in found]
    grand = math.fsum(map(math.fsum, table)) / (len(table) * len(indexes))
    by_row = [math.fsum(values) / len(indexes) for values in table]
    by_round = [math.fsum(values[column] for values in table) / len(table) for column in range(len(indexes))]
    squares = math.fsum(
        (value - by_row[line] - by_round[column] + grand) ** 2
        for line, values in enumerate(table)
        for column, value in enumerate(values)
    )
    freedom = (len(table) - 1) * (len(indexes) - 1)
    return Interleaved(math.sqrt(squares / freedom), freedom, len(indexes))


def of_pair(row: Measurement, versus: Measurement, phase: Phase, rows: Sequence[Measurement]) -> Interleaved | None:
    """The noise between two rows over the rounds that both share; None below 2 of them.

    In the final from these two alone; else from all of `rows` that ran in the same rounds, since those are few.
    """
    noise = interleaved([row, versus], phase)
    pooled = interleaved(rows, phase) if phase != "final" else None
    return pooled if noise and pooled and pooled.rounds == noise.rounds else noise


def assumed_pair_spread(spread: Spread, *rows: Measurement) -> float:
    """The log-ratio's spread between two of `rows` where too little was repeated to measure it."""
    steady = spread.device_kind != "cpu" or not any(noise_group(row.configuration) for row in rows)
    return PAIR_SPREAD_STEADY if steady else PAIR_SPREAD_SYSTEM_ALLOCATOR


def pair_noise(first: Measurement, second: Measurement, phase: Phase, spread: Spread) -> float:
    """The largest |log(latency ratio)| that chance explains at 95 % between rows that were not measured in rounds.

    The larger of the rows' own unrest inside their processes, combined in quadrature, and the spread between processes.
    """
    counts = [max(len(process_values(row, phase)), 1) for row in (first, second)]
    shrink = math.sqrt(1 / counts[0] + 1 / counts[1])
    if spread.measured and spread.deviation is not None:
        between = t_quantile(spread.repeats) * spread.deviation * shrink
    else:
        assumed = assumed_pair_spread(spread, first, second) / math.sqrt(2)  # of one process
        between = NORMAL_QUANTILE * max(assumed, spread.deviation or 0.0) * shrink
    return max(between, math.hypot(*(_inside(row) for row in (first, second))))


def _inside(row: Measurement) -> float:
    """95 % half-width of the row's median over its samples, on a log scale; 0 where it has none."""
    figures, count = row.latency_s, len(row.samples_s)
    if figures is None or figures.p5 <= 0 or not count:
        return 0.0
    deviation = math.log(figures.p95 / figures.p5) / P5_TO_P95
    return NORMAL_QUANTILE * MEDIAN_FACTOR * deviation / math.sqrt(count)
