"""The one estimate of how much faster a row is, in each way in which it is made."""

from __future__ import annotations

import ast
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import gpubench.stats
from gpubench.hardware.facts import Device
from gpubench.report.model import Measurement
from gpubench.stats.estimate import paired, separate, two_way_error
from gpubench.stats.processes import log_times, shared
from gpubench.stats.spread import PAIR_SPREAD_NOISY, PAIR_SPREAD_STEADY, Spreads, spreads
from tests.reports import CPU, GPU, baseline, report, row

NOTHING_REPEATED = Spreads({}, "median", across_phases=True, on_cpu=False)
DISTURBED = ["contaminated: planted"]


def around(step_s: float, seed: int, count: int, noise: float = 0.02) -> list[float]:
    chance = random.Random(seed)
    return [step_s * chance.lognormvariate(0, noise) for _ in range(count)]


def rows_of(phase: str, count: int = 5) -> list[Measurement]:
    times = [around(0.1, 1, count), around(0.05, 2, count), around(0.06, 3, count)]
    return [row(name, 0.1, **{f"{phase}_s": values}) for name, values in zip("abc", times, strict=True)]


def test_an_estimate_is_a_speedup_over_the_named_row() -> None:
    slow, fast, _ = rows_of("final")
    estimate = paired(fast, slow, "final")
    assert estimate is not None
    assert estimate.ratio == pytest.approx(2, rel=0.05)
    assert (estimate.versus, estimate.phase, estimate.rounds, estimate.method) == ("a", "final", 5, "paired")
    assert estimate.p_value(1) < 1e-6 < 0.99 < estimate.p_value(-1)
    assert estimate.ratio == pytest.approx(math.exp(estimate.versus_log_time - estimate.log_time))
    back = paired(slow, fast, "final")
    assert back is not None and back.log_ratio == pytest.approx(-estimate.log_ratio)


def test_a_paired_interval_is_that_of_a_paired_t_test() -> None:
    slow, fast, _ = rows_of("final")
    estimate = paired(fast, slow, "final")
    logs = [np.log([part.median_s for part in side.rounds if part.phase == "final"]) for side in (slow, fast)]
    assert estimate is not None
    for confidence in (0.9, 0.95):
        expected = stats.ttest_rel(*logs).confidence_interval(confidence)
        assert estimate.interval(confidence) == pytest.approx(tuple(expected), rel=1e-5)


def test_a_runoff_pools_its_error_over_all_rows_of_its_rounds() -> None:
    rows = rows_of("runoff")
    estimate = paired(rows[1], rows[0], "runoff", pooled=two_way_error(rows, "runoff"))
    table = np.array([list(log_times(side, "runoff").values()) for side in rows])
    residual = table - table.mean(0) - table.mean(1)[:, None] + table.mean()
    assert estimate is not None
    assert (estimate.method, estimate.freedom) == ("pooled", 8)
    assert estimate.error == pytest.approx(math.sqrt((residual**2).sum() / 8 * 2 / 5))
    alone = paired(rows[1], rows[0], "runoff")
    assert alone is not None and (alone.method, alone.freedom) == ("paired", 4)


def test_a_final_is_not_pooled() -> None:
    rows = rows_of("final")
    estimate = paired(rows[1], rows[0], "final", pooled=two_way_error(rows, "final"))
    assert estimate is not None and (estimate.method, estimate.freedom) == ("paired", 4)


def test_one_round_is_no_estimate() -> None:
    slow, fast, _ = rows_of("final", count=1)
    assert paired(fast, slow, "final") is None
    assert separate(fast, slow, "runoff", NOTHING_REPEATED) is None


def test_a_bias_bounds_the_interval_from_below() -> None:
    slow, fast, _ = rows_of("final")
    estimate = paired(fast, slow, "final")
    assert estimate is not None
    wide = replace(estimate, bias=0.5)
    assert (wide.low, wide.high) == pytest.approx((estimate.ratio * math.exp(-0.5), estimate.ratio * math.exp(0.5)))
    assert replace(estimate, bias=1e-9).interval() == estimate.interval()


def test_separate_processes_are_as_uncertain_as_the_spread_says() -> None:
    slow, fast = row("a", 0.1, explore_s=around(0.1, 1, 4)), row("b", 0.05, {"threads": 2}, explore_s=[0.05] * 2)
    measured = spreads([report(slow, fast)], across_phases=True)
    estimate = separate(fast, slow, "explore", measured, run_spread=0.03)
    logs = np.log([part.median_s for part in slow.rounds])
    assert estimate is not None
    assert (estimate.rounds, estimate.method, estimate.assumed) == (2, "separate", False)
    pooled = math.sqrt(((logs - logs.mean()) ** 2).sum() / 4)
    assert measured.of(fast).deviation == pytest.approx(pooled)
    assert measured.of(slow).deviation > pooled  # its own, since it is less steady than its group
    assert estimate.error == pytest.approx(math.sqrt(pooled**2 * (1 / 4 + 1 / 2) + 0.03**2))


@pytest.mark.parametrize(
    ("device", "allocator", "pair"),
    [
        (GPU, "system", PAIR_SPREAD_STEADY),
        (CPU, "system", PAIR_SPREAD_NOISY),
        (CPU, "tuned", PAIR_SPREAD_STEADY),
    ],
)
def test_a_spread_is_assumed_where_nothing_was_repeated(device: Device, allocator: str, pair: float) -> None:
    slow, fast = row("a", 0.1, {"allocator": allocator}), row("b", 0.05, {"allocator": allocator, "threads": 2})
    found = separate(fast, slow, "explore", spreads([report(slow, fast, device=device)], across_phases=True))
    assert found is not None and found.assumed
    assert found.error == pytest.approx(pair)
    assert not found.rules_out(0.5, 0.9)


def test_rows_of_unlike_groups_are_as_unsteady_as_the_less_steady_one() -> None:
    noisy = row("a", 0.1, {"allocator": "system"}, explore_s=around(0.1, 1, 5, 0.1))
    steady = row("b", 0.1, {"allocator": "tuned"}, explore_s=around(0.1, 2, 5, 0.001))
    other = row("c", 0.1, {"allocator": "tuned", "threads": 2}, explore_s=around(0.1, 3, 5, 0.001))
    found = spreads([report(noisy, steady, other)], across_phases=True)
    assert found.of(steady, noisy) == found.of(noisy, noisy)
    assert found.of(steady, other).deviation < 0.01 < found.of(steady, noisy).deviation


def test_drift_between_phases_counts_only_across_them() -> None:
    """The machine is 20 % slower in the final than it was while exploring."""
    drifting = baseline(0.1, explore_s=around(0.1, 1, 4, 0.002), final_s=around(0.12, 2, 4, 0.002))
    across, within = (spreads([report(drifting)], across_phases=flag).of(drifting) for flag in (True, False))
    assert across.deviation > 0.08
    assert within.deviation < 0.005
    assert (across.freedom, within.freedom) == (7, 6)


def test_samples_that_vary_much_widen_the_interval_of_few_processes() -> None:
    restless, steady = (row("b", 0.05, noise=noise) for noise in (0.5, 0.001))
    wide, narrow = (separate(fast, row("a", 0.1), "explore", NOTHING_REPEATED) for fast in (restless, steady))
    assert wide is not None and narrow is not None
    assert wide.error > 2 * narrow.error
    many = (row(name, 0.1, explore_s=[0.1, 0.1001, 0.0999], noise=0.5) for name in "ab")
    of_many = separate(*many, "explore", NOTHING_REPEATED)
    assert of_many is not None and of_many.error < narrow.error


@pytest.mark.parametrize(("clean", "kept"), [(3, 3), (2, 5)])
def test_disturbed_rounds_are_left_out_where_enough_others_remain(clean: int, kept: int) -> None:
    flags = [[]] + [[]] * clean + [DISTURBED] * (5 - clean)  # of the exploring process, then of the rounds
    disturbed, other = row("a", 0.1, final_s=[0.1] * 5, round_flags=flags), row("b", 0.1, final_s=[0.1] * 5)
    assert len(log_times(disturbed, "final")) == kept
    assert [len(times) for times in shared([disturbed, other], "final")] == [kept, kept]
    assert len(shared([disturbed, other], "final", disturbed=True)[0]) == 5


def test_figures_are_per_item() -> None:
    small, large = row("a", 0.1, items=1), row("b", 0.4, items=8)
    found = separate(large, small, "explore", NOTHING_REPEATED)
    assert found is not None and found.ratio == pytest.approx(2)


def test_statistics_import_neither_analysis_nor_regression() -> None:
    folder = Path(gpubench.stats.__file__).parent
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.startswith(("gpubench.analysis", "gpubench.regression")) for name in names), path
