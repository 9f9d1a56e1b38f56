from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scipy import stats

from gpubench.errors import GpubenchError
from gpubench.stats.latency import latency


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


def test_order_does_not_matter() -> None:
    assert latency([3.0, 1.0, 2.0]) == latency([1.0, 2.0, 3.0])


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf], [-1.0]])
def test_bad_samples_are_refused(values: list[float]) -> None:
    with pytest.raises(GpubenchError, match=r"no samples|A sample is"):
        latency(values)
