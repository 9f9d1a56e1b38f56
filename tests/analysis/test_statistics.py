from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scipy import stats

from gpubench.analysis.statistics import T_QUANTILES, latency, relative_noise, t_quantile
from gpubench.errors import GpubenchError


@pytest.mark.parametrize("count", [6, 7, 8, 9, 10, 11, 20, 57, 199, 1000])
def test_the_interval_is_scipys_exact_one(count: int) -> None:
    chance = random.Random(count)
    values = [chance.lognormvariate(0, 1) for _ in range(count)]
    expected = stats.quantile_test(values, p=0.5).confidence_interval(0.95)
    found = latency(values)
    assert (found.ci_low, found.ci_high) == (expected.low, expected.high)
    assert found.median == np.median(values)
    assert (found.p5, found.p95) == tuple(np.quantile(values, [0.05, 0.95]))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_too_few_samples_have_their_range_as_interval(count: int) -> None:
    assert math.isnan(stats.quantile_test(range(count), p=0.5).confidence_interval(0.95).low)
    found = latency([float(value) for value in range(1, count + 1)])
    assert (found.ci_low, found.ci_high) == (1.0, float(count))


def test_the_interval_covers_the_true_median() -> None:
    chance = random.Random(1)
    covered = 0
    for _ in range(300):
        found = latency([chance.lognormvariate(0, 1) for _ in range(15)])
        covered += found.ci_low <= 1.0 <= found.ci_high
    assert covered >= 0.93 * 300


def test_order_does_not_matter() -> None:
    assert latency([3.0, 1.0, 2.0]) == latency([1.0, 2.0, 3.0])


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf], [-1.0]])
def test_bad_samples_are_refused(values: list[float]) -> None:
    with pytest.raises(GpubenchError, match=r"no samples|A sample is"):
        latency(values)


def test_relative_noise_is_half_the_interval() -> None:
    figure = latency([1.0, 1.02])
    assert relative_noise(figure) == pytest.approx(0.01, rel=0.02)
    assert relative_noise(latency([0.0, 1.0])) == math.inf


def test_the_table_of_t_quantiles_is_scipys() -> None:
    for freedom in range(1, len(T_QUANTILES) + 20):
        assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-5)
