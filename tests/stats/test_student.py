from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from gpubench.stats.student import (
    DETECTION_FACTORS,
    LARGE_FREEDOM,
    T_QUANTILES,
    detectable,
    detection_factor,
    p_value,
    quantile,
)


@pytest.mark.parametrize("rounds", [2, 3, 6, 10, 41, 60])
def test_the_detectable_effect_is_what_a_test_of_that_power_finds(rounds: int) -> None:
    """80 % of one-sided t-tests at 0.01 find an effect of the size that `detectable` gives."""
    chance, spread = np.random.default_rng(0), 0.02
    effect = math.log1p(detectable(spread / math.sqrt(rounds), rounds - 1))
    studies = chance.normal(effect, spread, (10000, rounds))
    found = np.mean(stats.ttest_1samp(studies, 0.0, axis=1, alternative="greater").pvalue < 0.01)
    assert found == pytest.approx(0.8, abs=0.015)


def test_the_table_of_detection_factors_is_scipys() -> None:
    for freedom in range(1, len(DETECTION_FACTORS) + 20):
        power = stats.nct.sf(stats.t.ppf(0.99, freedom), freedom, detection_factor(freedom))
        assert power == pytest.approx(0.8, abs=1e-4)


def test_an_effect_beyond_all_measure_is_still_a_number() -> None:
    assert math.isfinite(detectable(42.0, 1))


def test_the_table_of_t_quantiles_is_scipys() -> None:
    for freedom in range(1, len(T_QUANTILES) + 20):
        assert quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-5)
    assert quantile(LARGE_FREEDOM) == pytest.approx(stats.t.ppf(0.975, LARGE_FREEDOM), rel=2e-3)
    assert quantile(7, 0.9) == pytest.approx(stats.t.ppf(0.95, 7))


def test_p_values_are_those_of_a_one_sided_t_test() -> None:
    values = [0.01, 0.03, -0.01, 0.02, 0.015]
    error = float(stats.sem(values))
    expected = stats.ttest_1samp(values, 0.0, alternative="greater").pvalue
    assert p_value(float(np.mean(values)), error, 4) == pytest.approx(expected)
    assert (p_value(0.1, 0.0, 4), p_value(0.0, 0.0, 4), p_value(-0.1, 0.0, 4)) == (0.0, 1.0, 1.0)
