"""Figures from raw samples and from the medians of processes. Pure functions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from gpubench.errors import GpubenchError
from gpubench.results.schema import Latency

CONFIDENCE = 0.95
MIN_PROCESSES = 3  # with 2, Student's factor of 12.7 makes an interval that says nothing
DETECTION_FACTOR = 3.17  # z(0.99) + z(0.80), standard normal quantiles
# scipy.special.stdtrit(n, 0.975) for n = 1, 2, ...: kept here because commands that only read reports must start at
# once, and scipy takes 0.2 s to import. A test holds the table against scipy.
# fmt: off
T_QUANTILES = (
    12.7062, 4.30265, 3.18245, 2.77645, 2.57058, 2.44691, 2.36462, 2.306, 2.26216, 2.22814,
    2.20099, 2.17881, 2.16037, 2.14479, 2.13145, 2.11991, 2.10982, 2.10092, 2.09302, 2.08596,
    2.07961, 2.07387, 2.06866, 2.0639, 2.05954, 2.05553, 2.05183, 2.04841, 2.04523, 2.04227,
    2.03951, 2.03693, 2.03452, 2.03224, 2.03011, 2.02809, 2.02619, 2.02439, 2.02269, 2.02108,
)
# fmt: on


def latency(samples_s: Sequence[float], medians_s: Sequence[float] | None = None) -> Latency:
    """Seconds per step from the samples of some processes and those processes' medians (None: of one process).

    `median` is the geometric mean of the medians; the 95 % interval is Student's t over their logarithms, since the
    process is the unit of replication: samples of one process say nothing of how far the next one will be off. With
    fewer than `MIN_PROCESSES` there is none. `p5` and `p95` are percentiles of all samples.

    Raises GpubenchError for no samples, and for samples that are negative or not finite.
    """
    if not samples_s:
        raise GpubenchError("There are no samples to take a latency from.", "Measure at least one step.")
    for sample in samples_s:
        if not (math.isfinite(sample) and sample >= 0):
            raise GpubenchError(f"A sample is {sample} s.", "Samples are finite numbers of seconds, at least 0.")
    import numpy as np

    p5, p95 = np.quantile(np.asarray(samples_s, dtype=float), (0.05, 0.95))
    medians = [statistics.median(samples_s)] if medians_s is None else list(medians_s)
    middle, low, high = center(medians)
    return Latency(median=middle, p5=float(p5), p95=float(p95), ci_low=low, ci_high=high, processes=len(medians))


def center(medians_s: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Geometric mean of positive figures and its 95 % interval by Student's t over their logarithms.

    The interval is None with fewer than `MIN_PROCESSES` figures, and where one of them is 0.
    """
    if min(medians_s) <= 0:
        return statistics.median(medians_s), None, None
    logs = [math.log(value) for value in medians_s]
    mean = math.fsum(logs) / len(logs)
    if len(logs) == 1:
        return medians_s[0], None, None
    if len(logs) < MIN_PROCESSES:
        return math.exp(mean), None, None
    half = t_quantile(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def detectable(spread: float, rounds: int) -> float:
    """The smallest relative slowdown that `rounds` paired rounds find, for paired log-ratios of that spread.

    One-sided at 0.01 with power 0.8: exp(3.17 s / sqrt(n)) - 1, where 3.17 = z(0.99) + z(0.80).
    """
    return math.expm1(DETECTION_FACTOR * spread / math.sqrt(rounds))


def t_quantile(degrees_of_freedom: int) -> float:
    """The factor from a standard error to a two-sided 95 % half-width (Student's t); 1 degree of freedom or more."""
    if degrees_of_freedom <= len(T_QUANTILES):
        return T_QUANTILES[degrees_of_freedom - 1]
    from scipy.special import stdtrit

    return float(stdtrit(degrees_of_freedom, 1 - (1 - CONFIDENCE) / 2))
