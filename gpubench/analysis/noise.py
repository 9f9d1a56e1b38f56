"""How far two rows may differ by chance alone, as a difference of log-latencies (0.02 is about 2 %).

One process's interval says nothing about the spread between processes, which is far larger. So the spread is
estimated from configurations that were measured in several processes, and assumed where there are too few of them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from gpubench.analysis.statistics import relative_noise, t_quantile
from gpubench.results.schema import Configuration, Measurement, Report

NORMAL_QUANTILE = 1.96  # two-sided 95 %
# Spread (standard deviation) of the log-ratio between two identical processes, seen over 8 pairs and 12 rounds on a
# 2-core CPU with torch 2.13: with the allocator held steady, and with glibc's default one, whose mmap threshold moves
# with each process's history.
PAIR_SPREAD_STEADY = 0.019
PAIR_SPREAD_SYSTEM_ALLOCATOR = 0.103
MIN_DEGREES_OF_FREEDOM = 3  # with fewer, Student's factor is above 4 and would tie everything with everything


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


def process_values(row: Measurement, phase: str | None = None) -> list[float]:
    """Seconds per item, one figure for each process of `phase` (None: of any); empty where none is above 0."""
    items = row.items_per_step or 1
    medians = [part.median_s for part in row.rounds if phase in (None, part.phase)]
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
        if row.status == "ok":
            groups[key(row.configuration)].extend(math.log(value) for value in process_values(row))
    squares, freedom = 0.0, 0
    for logs in groups.values():
        if len(logs) > 1:
            mean = math.fsum(logs) / len(logs)
            squares += math.fsum((value - mean) ** 2 for value in logs)
            freedom += len(logs) - 1
    return Spread(math.sqrt(squares / freedom) if freedom else None, freedom, report.device.kind)


def assumed_pair_spread(spread: Spread, *rows: Measurement) -> float:
    """The log-ratio's spread assumed between two of `rows` where too little was repeated to measure it."""
    steady = spread.device_kind != "cpu" or all(
        row.configuration.get("allocator", "system") != "system" for row in rows
    )
    return PAIR_SPREAD_STEADY if steady else PAIR_SPREAD_SYSTEM_ALLOCATOR


def pair_noise(first: Measurement, second: Measurement, phase: str, spread: Spread) -> float:
    """The largest |log(latency ratio)| that chance explains between two rows at 95 %.

    The larger of the rows' own intervals, combined in quadrature, and the spread between processes.
    """
    counts = [max(len(process_values(row, phase)), 1) for row in (first, second)]
    shrink = math.sqrt(1 / counts[0] + 1 / counts[1])
    if spread.measured and spread.deviation is not None:
        between = t_quantile(spread.repeats) * spread.deviation * shrink
    else:
        assumed = assumed_pair_spread(spread, first, second) / math.sqrt(2)  # of one process
        between = NORMAL_QUANTILE * max(assumed, spread.deviation or 0.0) * shrink
    within = [relative_noise(row.latency_s) for row in (first, second) if row.latency_s]
    # An interval that touches 0 s has no width on a log scale; such a row has no usable figure and is left out before.
    return max(between, math.hypot(*(width for width in within if math.isfinite(width))))
