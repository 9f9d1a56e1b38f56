from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scipy import stats

from gpubench.analysis.statistics import (
    DETECTION_FACTORS,
    T_QUANTILES,
    detectable,
    detection_factor,
    latency,
    t_quantile,
)
from gpubench.errors import GpubenchError


def test_the_interval_is_students_over_the_processes() -> None:
    medians = [0.100, 0.104, 0.097, 0.101]
    found = latency([0.1] * 5, medians)
    low, high = stats.t.interval(0.95, 3, np.mean(np.log(medians)), stats.sem(np.log(medians)))
    assert (found.ci_low, found.ci_high) == pytest.approx((math.exp(low), math.exp(high)), rel=1e-5)
    assert found.median == pytest.approx(stats.gmean(medians))
    assert found.processes == 4


def test_samples_of_one_process_give_no_interval() -> None:
    chance = random.Random(0)
    values = [chance.lognormvariate(0, 0.1) for _ in range(200)]
    found = latency(values)
    assert (found.ci_low, found.ci_high) == (None, None)
    assert found.median == np.median(values)
    assert (found.p5, found.p95) == tuple(np.quantile(values, [0.05, 0.95]))
    assert latency(values, [1.0, 1.1]).ci_low is None


def test_the_interval_covers_what_differs_between_processes() -> None:
    chance = random.Random(1)
    covered = 0
    for _ in range(300):
        found = latency([1.0], [chance.lognormvariate(0, 0.1) for _ in range(5)])
        covered += found.ci_low <= 1.0 <= found.ci_high
    assert covered >= 0.92 * 300


def test_a_process_whose_figure_is_0_has_no_logarithm() -> None:
    assert latency([0.0], [0.0, 0.1, 0.1]).ci_low is None


@pytest.mark.parametrize("rounds", [2, 3, 6, 10, 41, 60])
def test_the_detectable_effect_is_what_a_test_of_that_power_finds(rounds: int) -> None:
    """80 % of one-sided t-tests at 0.01 find an effect of the size that `detectable` gives."""
    chance, spread = np.random.default_rng(0), 0.02
    effect = math.log1p(detectable(spread, rounds))
    studies = chance.normal(effect, spread, (10000, rounds))
    found = np.mean(stats.ttest_1samp(studies, 0.0, axis=1, alternative="greater").pvalue < 0.01)
    assert found == pytest.approx(0.8, abs=0.015)


def test_the_table_of_detection_factors_is_scipys() -> None:
    for freedom in range(1, len(DETECTION_FACTORS) + 20):
        power = stats.nct.sf(stats.t.ppf(0.99, freedom), freedom, detection_factor(freedom))
        assert power == pytest.approx(0.8, abs=1e-4)


def test_an_effect_beyond_all_measure_is_still_a_number() -> None:
    assert math.isfinite(detectable(60.0, 2))


def test_order_does_not_matter() -> None:
    assert latency([3.0, 1.0, 2.0]) == latency([1.0, 2.0, 3.0])


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf], [-1.0]])
def test_bad_samples_are_refused(values: list[float]) -> None:
    with pytest.raises(GpubenchError, match=r"no samples|A sample is"):
        latency(values)


def test_the_table_of_t_quantiles_is_scipys() -> None:
    for freedom in range(1, len(T_QUANTILES) + 20):
        assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-5)
