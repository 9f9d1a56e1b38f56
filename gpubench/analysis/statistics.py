"""Figures from raw samples and from the medians of processes. Pure functions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from gpubench.errors import GpubenchError
from gpubench.report.model import Latency

CONFIDENCE = 0.95
NORMAL_QUANTILE = 1.96  # two-sided 95 %
DETECTION_LEVEL = 0.01  # of the one-sided tests whose power DETECTION_FACTORS are for
MIN_PROCESSES = 3  # with 2, Student's factor of 12.7 makes an interval that says nothing
# scipy.special.stdtrit(n, 0.975) for n = 1, 2, ...: kept here because commands that only read reports must start at
# once, and scipy takes 0.2 s to import. A test holds the table against scipy.
# fmt: off
T_QUANTILES = (
    12.7062, 4.30265, 3.18245, 2.77645, 2.57058, 2.44691, 2.36462, 2.306, 2.26216, 2.22814,
    2.20099, 2.17881, 2.16037, 2.14479, 2.13145, 2.11991, 2.10982, 2.10092, 2.09302, 2.08596,
    2.07961, 2.07387, 2.06866, 2.0639, 2.05954, 2.05553, 2.05183, 2.04841, 2.04523, 2.04227,
    2.03951, 2.03693, 2.03452, 2.03224, 2.03011, 2.02809, 2.02619, 2.02439, 2.02269, 2.02108,
)
# By how many standard errors a true effect must differ from none, so that 80 % of one-sided t-tests at 0.01 with 1, 2,
# ... degrees of freedom find it: scipy.special.nctdtrinc(n, 0.2, stdtrit(n, 0.99)). It falls to 3.17, the sum of the
# normal quantiles, which would promise too much of few rounds: at 3 of them a power of 0.2.
DETECTION_FACTORS = (
    40.7998, 8.95904, 5.86825, 4.87537, 4.40494, 4.13432, 3.95957, 3.83778, 3.74819, 3.67958,
    3.6254, 3.58154, 3.54533, 3.51492, 3.48903, 3.46673, 3.44732, 3.43027, 3.41518, 3.40172,
    3.38966, 3.37877, 3.36891, 3.35992, 3.3517, 3.34416, 3.33721, 3.33079, 3.32484, 3.3193,
    3.31415, 3.30933, 3.30482, 3.30059, 3.29661, 3.29286, 3.28933, 3.28599, 3.28283, 3.27983,
)
# fmt: on


def latency(samples_s: Sequence[float], medians_s: Sequence[float] | None = None, drift: float = 0.0) -> Latency:
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
    middle, low, high = center(medians, drift)
    return Latency(median=middle, p5=float(p5), p95=float(p95), ci_low=low, ci_high=high, processes=len(medians))


def center(medians_s: Sequence[float], drift: float = 0.0) -> tuple[float, float | None, float | None]:
    """Geometric mean of positive figures and its 95 % interval by Student's t over their logarithms.

    drift: the standard deviation of the machine's own log-speed over minutes, combined in quadrature. Processes that
    ran within seconds of each other all had the same of it, so that their own spread cannot show it.

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
    half = math.hypot(
        t_quantile(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs)), NORMAL_QUANTILE * drift
    )
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def detectable(spread: float, rounds: int, freedom: int | None = None) -> float:
    """The smallest relative slowdown that `rounds` (2 or more) find, for paired log-ratios of that spread.

    One-sided at 0.01 with power 0.8 by a t-test over rounds: exp(f s / sqrt(n)) - 1, with f of the noncentral t.
    freedom: the degrees of freedom of `spread`; rounds - 1 where it is from these rounds alone.
    """
    effect = detection_factor(freedom or rounds - 1) * spread / math.sqrt(rounds)
    return math.expm1(min(effect, 700.0))  # beyond this the exponential overflows


def detection_factor(degrees_of_freedom: int, level: float = DETECTION_LEVEL) -> float:
    """How many standard errors an effect must measure to be found (one-sided, power 0.8); from 1 degree on."""
    if degrees_of_freedom <= len(DETECTION_FACTORS) and level == DETECTION_LEVEL:
        return DETECTION_FACTORS[degrees_of_freedom - 1]
    from scipy.special import nctdtrinc, stdtrit

    return float(nctdtrinc(degrees_of_freedom, 0.2, stdtrit(degrees_of_freedom, 1 - level)))


def t_quantile(degrees_of_freedom: int) -> float:
    """The factor from a standard error to a two-sided 95 % half-width (Student's t); 1 degree of freedom or more."""
    if degrees_of_freedom <= len(T_QUANTILES):
        return T_QUANTILES[degrees_of_freedom - 1]
    from scipy.special import stdtrit

    return float(stdtrit(degrees_of_freedom, 1 - (1 - CONFIDENCE) / 2))
