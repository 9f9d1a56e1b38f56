"""Warming up until timings have settled, and whether they stayed so while samples were taken.

The test is the one that pyperf's calibration documents: the first value is no outlier, and the two halves agree in
mean, spread and quartiles. A run that is still speeding up (a cold cache, an autotuner) or drifting fails it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from gpubench.measure.timing import Step, Timer, calibrate

WINDOW = 6  # values looked at: the fewest whose halves have a middle and two ends
AGREEMENT = 0.10  # halves agree within 10 %: pyperf's own limit for mean and quartiles
DRIFT = 0.03  # a change below 3 % between the thirds is within what a shared machine does by itself
DRIFT_LEVEL = 0.01
DRIFT_SAMPLES = 9  # thirds of 3: the fewest with a middle
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


@dataclass(frozen=True)
class WarmUp:
    """What warming up took: `steady` is None where it ended with too few timings to tell."""

    iterations: int
    steady: bool | None
    seconds_per_iteration: float


def warm_up(
    step: Step, timer: Timer, *, min_iterations: int, max_s: float, block_s: float, min_s: float = math.inf
) -> WarmUp:
    """Runs `step` until its timings are steady, and for about `max_s` seconds at most.

    At least `min_iterations` times or for `min_s` seconds, whichever is less: a level that lasts for a while looks
    steady too, and only more of it shows that it was not. Short steps are timed in blocks of a fifth of `block_s`, so
    that a clock's grain is not taken for noise.
    """
    begin, timings, iterations, per_block = timer.now(), list[float](), 0, 1
    while True:
        seconds = timer.block(step, per_block).wall_s
        timings.append(seconds / per_block)
        iterations += per_block
        elapsed = timer.now() - begin
        if iterations >= min_iterations or elapsed >= min_s:
            if is_steady(timings):
                steady: bool | None = True
                break
            if elapsed >= max_s:
                steady = False if len(timings) >= WINDOW else None
                break
        if len(timings) <= 2:  # the first calls may still load code; from the third on the block length stands
            per_block = calibrate(timings[-1], block_s / 5)
    return WarmUp(iterations, steady, statistics.median(timings[-WINDOW:]))


def drift(samples: Sequence[float]) -> float | None:
    """How much slower the last third of `samples` (seconds) is than the first (0.1: 10 %); None where that is chance.

    Chance: Kendall's rank correlation with time has p >= 0.01, or the change is within `DRIFT`. A process that never
    settles passes the test of the warm-up where its speed changes slowly enough; over all its samples it shows.
    """
    if len(samples) < DRIFT_SAMPLES:
        return None
    from scipy.stats import kendalltau

    third = len(samples) // 3
    change = statistics.median(samples[-third:]) / statistics.median(samples[:third]) - 1
    if abs(change) <= DRIFT or not kendalltau(range(len(samples)), samples).pvalue < DRIFT_LEVEL:
        return None
    return change
