"""Student's t for log-ratios: quantiles, p-values and detectable effects."""

from __future__ import annotations

import math

CONFIDENCE = 0.95
NORMAL_QUANTILE = 1.96  # two-sided 95 %
# Degrees of freedom of a standard error that is known or assumed instead of estimated: in effect a normal distribution.
LARGE_FREEDOM = 1000
DETECTION_LEVEL = 0.01  # of the one-sided tests that DETECTION_FACTORS are for
LARGEST = 700.0  # exp of more overflows
# scipy.special.stdtrit(n, 0.975) for n = 1, 2, ...: importing scipy takes 0.2 s, which commands that only read reports
# must not cost. A test compares the table with scipy.
# fmt: off
T_QUANTILES = (
    12.7062, 4.30265, 3.18245, 2.77645, 2.57058, 2.44691, 2.36462, 2.306, 2.26216, 2.22814,
    2.20099, 2.17881, 2.16037, 2.14479, 2.13145, 2.11991, 2.10982, 2.10092, 2.09302, 2.08596,
    2.07961, 2.07387, 2.06866, 2.0639, 2.05954, 2.05553, 2.05183, 2.04841, 2.04523, 2.04227,
    2.03951, 2.03693, 2.03452, 2.03224, 2.03011, 2.02809, 2.02619, 2.02439, 2.02269, 2.02108,
)
# The true effect, in standard errors, that a one-sided t-test at 0.01 with n = 1, 2, ... degrees of freedom detects
# with power 0.8: scipy.special.nctdtrinc(n, 0.2, stdtrit(n, 0.99)). The normal limit, 3.17, would be too optimistic for
# few rounds: its power is 0.2 at 3 rounds.
DETECTION_FACTORS = (
    40.7998, 8.95904, 5.86825, 4.87537, 4.40494, 4.13432, 3.95957, 3.83778, 3.74819, 3.67958,
    3.6254, 3.58154, 3.54533, 3.51492, 3.48903, 3.46673, 3.44732, 3.43027, 3.41518, 3.40172,
    3.38966, 3.37877, 3.36891, 3.35992, 3.3517, 3.34416, 3.33721, 3.33079, 3.32484, 3.3193,
    3.31415, 3.30933, 3.30482, 3.30059, 3.29661, 3.29286, 3.28933, 3.28599, 3.28283, 3.27983,
)
# fmt: on


def quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """The factor from a standard error to the half-width of a two-sided interval, for 1 degree of freedom or more."""
    if confidence == CONFIDENCE and freedom <= len(T_QUANTILES):
        return T_QUANTILES[freedom - 1]
    if confidence == CONFIDENCE and freedom >= LARGE_FREEDOM:
        return NORMAL_QUANTILE
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + confidence) / 2))


def p_value(value: float, error: float, freedom: int) -> float:
    """The one-sided p-value for a true value above 0."""
    if error == 0:
        return 0.0 if value > 0 else 1.0
    from scipy.special import stdtr

    return float(stdtr(freedom, -value / error))


def detection_factor(freedom: int, level: float = DETECTION_LEVEL) -> float:
    """The true effect, in standard errors, that a one-sided test at `level` detects with power 0.8."""
    if level == DETECTION_LEVEL and freedom <= len(DETECTION_FACTORS):
        return DETECTION_FACTORS[freedom - 1]
    from scipy.special import nctdtrinc, stdtrit

    return float(nctdtrinc(freedom, 0.2, stdtrit(freedom, 1 - level)))


def detectable(error: float, freedom: int, level: float = DETECTION_LEVEL) -> float:
    """The smallest relative slowdown (0.05: 5 %) that a one-sided test at `level` detects with power 0.8.

    Args:
        error: standard error of the log-ratio.
        freedom: degrees of freedom of `error`.
        level: significance level of the test.
    """
    return relative(detection_factor(freedom, level) * error)


def relative(log_ratio: float) -> float:
    """A log-ratio as a relative change, limited to what a float can hold."""
    return math.expm1(min(max(log_ratio, -LARGEST), LARGEST))
