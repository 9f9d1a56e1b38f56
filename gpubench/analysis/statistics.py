"""Figures from the raw samples of one process. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gpubench.errors import GpubenchError
from gpubench.results.schema import Latency

CONFIDENCE = 0.95
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


def latency(samples_s: Sequence[float]) -> Latency:
    """Seconds per step: median, 5th and 95th percentile, and the exact distribution-free 95 % interval of the median.

    The interval runs between two order statistics chosen from the binomial distribution (W. J. Conover, Practical
    Nonparametric Statistics, 3rd ed., section 3.2). Fewer than 6 samples have no such interval: it is then their
    whole range, which covers the median with less than 95 %.
    It speaks of this one process only: between processes the spread is larger.

    Raises GpubenchError for no samples, and for samples that are negative or not finite.
    """
    if not samples_s:
        raise GpubenchError("There are no samples to take a latency from.", "Measure at least one step.")
    for sample in samples_s:
        if not (math.isfinite(sample) and sample >= 0):
            raise GpubenchError(f"A sample is {sample} s.", "Samples are finite numbers of seconds, at least 0.")
    import numpy as np

    ordered = np.sort(np.asarray(samples_s, dtype=float))
    p5, median, p95 = np.quantile(ordered, (0.05, 0.5, 0.95))
    low = _interval_index(len(ordered))
    return Latency(
        median=float(median),
        p5=float(p5),
        p95=float(p95),
        ci_low=float(ordered[low]),
        ci_high=float(ordered[-1 - low]),
    )


def _interval_index(count: int) -> int:
    """How many order statistics to leave out at either end; 0 where `count` is too small to leave out any."""
    # scipy.special instead of scipy.stats.quantile_test, which says the same (a test holds that): stats takes 0.5 s
    # to import, and every measured process would pay for it.
    from scipy.special import bdtr

    tail = (1 - CONFIDENCE) / 2
    index = -1
    while bdtr(index + 1, count, 0.5) < tail:
        index += 1
    return max(index, 0)


def relative_noise(figure: Latency) -> float:
    """Half the width of the interval of the median on a log scale: 0.01 is 1 %. Infinite where it touches 0."""
    if figure.ci_low <= 0:
        return math.inf
    return math.log(figure.ci_high / figure.ci_low) / 2


def t_quantile(degrees_of_freedom: int) -> float:
    """The factor from a standard error to a two-sided 95 % half-width (Student's t); 1 degree of freedom or more."""
    if degrees_of_freedom <= len(T_QUANTILES):
        return T_QUANTILES[degrees_of_freedom - 1]
    from scipy.special import stdtrit

    return float(stdtrit(degrees_of_freedom, 1 - (1 - CONFIDENCE) / 2))
