"""Whether a series of timings has settled. Pure functions over seconds; no clock, no I/O.

The test is the one that pyperf's calibration documents: the first value is no outlier, and the two halves agree in
mean, spread and quartiles. A run that is still speeding up (a cold cache, an autotuner) or drifting fails it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

WINDOW = 6  # values looked at: the fewest whose halves have a middle and two ends
AGREEMENT = 0.10  # halves agree within 10 %: pyperf's own limit for mean and quartiles
SPREAD_AGREEMENT = 2.0  # the halves' median absolute deviations may differ by this factor of the median's 10 %


def _mad(values: Sequence[float]) -> float:
    middle = statistics.median(values)
    return statistics.median(abs(value - middle) for value in values)


def is_steady(values: Sequence[float]) -> bool:
    """True if the last `WINDOW` of `values` (seconds) show no trend; False too if there are fewer."""
    if len(values) < WINDOW:
        return False
    window = list(values[-WINDOW:])
    low, _, high = statistics.quantiles(window, n=4, method="inclusive")
    if window[0] > high + 1.5 * (high - low):
        return False
    first, second = window[: WINDOW // 2], window[WINDOW // 2 :]
    for statistic in (statistics.mean, statistics.median, min, max):
        earlier, later = statistic(first), statistic(second)
        if abs(earlier - later) > AGREEMENT * max(earlier, later):
            return False
    return abs(_mad(first) - _mad(second)) <= SPREAD_AGREEMENT * AGREEMENT * statistics.median(window)
