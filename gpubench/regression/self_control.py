"""The control of every paired comparison: a row against itself.

The turns of a row in a round are split into halves in ABBA order. Both halves are of one copy of one model, so any
difference between them is the machine's or the harness's.
"""

from __future__ import annotations

import math
import statistics

from gpubench.report.model import Measurement
from gpubench.stats.estimate import Estimate, from_pairs
from gpubench.stats.processes import Statistic, p95


def self_estimate(row: Measurement, statistic: Statistic) -> Estimate | None:
    """How far the row differs from itself over its interleaved rounds; None below 2 of them."""
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
