"""Block timing against a scripted clock, so that every figure is exact."""

import random
import time

import pytest

from gpubench.measure.steady import drift, warm_up
from gpubench.measure.stopping import StoppingRule, has_settled, relative_spread
from gpubench.measure.timing import (
    ENQUEUED_STEPS,
    CudaTimer,
    Samples,
    WallTimer,
    calibrate,
    enqueue_seconds,
    sample,
    sample_blocks,
)
from tests.faults.scripted import Script


def take(
    script: Script,
    iterations: int = 1,
    samples: int = 4,
    least_s: float = 0.0,
    spread: float = 1.0,
    most_s: float = 100,
) -> Samples:
    rule = StoppingRule(min_samples=samples, min_s=least_s, target_spread=spread, max_s=most_s)
    return sample(script.step, WallTimer(script.now), iterations=iterations, rule=rule)


def test_blocks_hold_the_exact_mean_of_their_iterations() -> None:
    script = Script(1.0, 3.0, 2.0, 2.0, 5.0, 7.0, 1.0, 1.0)
    taken = take(script, iterations=2)
    assert taken.seconds == (2.0, 2.0, 6.0, 1.0)
    assert taken.iterations_per_sample == 2
    assert taken.unmet == ""


def test_a_block_is_as_long_as_asked() -> None:
    assert calibrate(0.003, 0.05) == 17
    assert calibrate(0.05, 0.05) == 1
    assert calibrate(2.0, 0.05) == 1
    assert calibrate(0.0, 0.05) == 1


def test_sampling_goes_on_until_the_least_time() -> None:
    assert len(take(Script(0.1), samples=2, least_s=1.0).seconds) in (10, 11)


def test_time_running_out_names_the_condition_that_was_not_met() -> None:
    taken = take(Script(*([1.0, 2.0] * 50)), spread=0.01, most_s=12.0)
    assert sum(taken.seconds) >= 12.0
    assert "spread" in taken.unmet


def test_a_step_longer_than_all_time_still_gives_two_samples() -> None:
    taken = take(Script(50.0), samples=10, most_s=2.0)
    assert taken.seconds == (50.0, 50.0)
    assert taken.unmet == "2 of 10 samples"


def test_a_turn_has_exactly_the_blocks_asked_for() -> None:
    taken = sample_blocks(Script(1.0, 3.0, 2.0).step, WallTimer(), iterations=1, count=3)
    assert len(taken.seconds) == 3


def test_the_conditions_and_the_time_limit_know_nothing_of_each_other() -> None:
    rule = StoppingRule(min_samples=3, min_s=1.0, target_spread=0.01, max_s=5.0)
    assert rule.unmet([1.0, 1.0], 9.0) == "2 of 3 samples"
    assert rule.unmet([1.0] * 3, 0.5) == "0.50 of 1 s of sampling"
    assert rule.unmet([1.0, 1.5, 2.0], 9.0) == "spread 33.3%, not below 1.0%"
    assert rule.unmet([1e-9] * 5 + [1.0] * 4, 9.0) == "spread over 1000%, not below 1.0%"
    assert rule.unmet([1.0] * 3, 9.0) == ""
    assert not rule.out_of_time([1.0] * 9, 4.9)
    assert not rule.out_of_time([1.0], 9.0)  # one sample has no spread
    assert rule.out_of_time([1.0, 1.0], 5.0)


def test_a_spread_that_has_settled_is_enough() -> None:
    settled = [1.0, 1.1] * 8
    assert has_settled(settled)
    assert not has_settled([1.0] * 8 + [1.1] * 8)
    assert StoppingRule(min_samples=3, min_s=0.0, target_spread=0.001).unmet(settled, 1.0) == ""


def test_a_slow_start_of_20_iterations_is_left_to_the_warm_up() -> None:
    script = Script(*[0.04] * 20, 0.01)
    warm = warm_up(script.step, WallTimer(script.now), min_iterations=25, max_s=100.0, block_s=0.05)
    assert warm.iterations >= 25
    assert warm.seconds_per_iteration == pytest.approx(0.01)
    assert take(script).seconds == pytest.approx([0.01] * 4)


def test_a_falling_start_is_waited_for() -> None:
    script = Script(0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
    warm = warm_up(script.step, WallTimer(script.now), min_iterations=3, max_s=100.0, block_s=0.05)
    assert warm.steady is True
    assert warm.seconds_per_iteration == pytest.approx(0.1)


def test_long_steps_are_not_run_25_times() -> None:
    script = Script(0.5)
    warm = warm_up(script.step, WallTimer(script.now), min_iterations=25, min_s=1.5, max_s=4.0, block_s=0.05)
    assert warm.steady is True
    assert warm.iterations == 6  # the fewest that show whether it is steady


def test_a_drift_too_slow_for_the_warm_up_shows_over_the_samples() -> None:
    assert drift([0.1 * 1.01**index for index in range(30)]) == pytest.approx(1.01**20 - 1, rel=0.01)
    chance = random.Random(0)
    assert all(drift([chance.gauss(0.1, 0.005) for _ in range(20)]) is None for _ in range(50))
    assert drift([0.1, 0.2] * 2) is None  # too few to tell


def test_endless_drift_ends_at_the_cap_and_is_told() -> None:
    script = Script(*[0.1 * 1.1**index for index in range(200)])
    warm = warm_up(script.step, WallTimer(script.now), min_iterations=3, max_s=20.0, block_s=0.05)
    assert warm.steady is False


def test_a_warm_up_too_short_to_tell_says_so() -> None:
    script = Script(3.0)
    warm = warm_up(script.step, WallTimer(script.now), min_iterations=3, max_s=4.0, block_s=0.05)
    assert warm.steady is None
    assert warm.iterations == 3


def test_short_steps_are_warmed_up_in_blocks() -> None:
    script = Script(0.0005)
    warm = warm_up(script.step, WallTimer(script.now), min_iterations=3, max_s=4.0, block_s=0.05)
    assert warm.iterations > 50
    assert warm.seconds_per_iteration == pytest.approx(0.0005)


def test_setting_the_wall_clock_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    block = WallTimer().block(lambda: time.sleep(0.02), 2)
    assert 0.04 <= block.wall_s < 10


def test_relative_spread() -> None:
    assert relative_spread([1.0, 1.0, 1.0]) == 0.0
    assert relative_spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 3)
    assert relative_spread([1.0]) == 0.0


class Gpu:
    """A GPU behind a queue: a call of the step takes the host's time, and synchronizing what is left of the GPU's."""

    def __init__(self, host_s: float, device_s: float) -> None:
        self.host_s, self.device_s, self.time, self.done, self.waits = host_s, device_s, 0.0, 0.0, 0

    def step(self) -> None:
        self.time += self.host_s
        self.done = max(self.done, self.time) + self.device_s

    def synchronize(self, device: object) -> None:
        self.time, self.waits = max(self.time, self.done), self.waits + 1

    def timer(self) -> CudaTimer:
        timer = CudaTimer.__new__(CudaTimer)  # its own constructor needs no GPU, but torch's events would
        timer.device, timer.cuda, timer.now = None, self, lambda: self.time  # type: ignore[assignment]
        return timer


def test_the_hosts_time_for_a_step_is_taken_from_an_idle_gpu() -> None:
    gpu = Gpu(host_s=0.002, device_s=0.03)
    gpu.step()  # still running when the first one is timed
    assert enqueue_seconds(gpu.step, gpu.timer(), 0.03) == pytest.approx(0.002)
    assert gpu.waits == 2 * ENQUEUED_STEPS
    assert gpu.time == gpu.done  # nothing is left for what comes next


def test_of_long_steps_few_are_enqueued() -> None:
    gpu = Gpu(host_s=0.002, device_s=2.0)
    enqueue_seconds(gpu.step, gpu.timer(), 2.0)
    assert gpu.waits == 2


def test_a_cpu_enqueues_nothing() -> None:
    assert enqueue_seconds(Script(1.0).step, WallTimer(), 1.0) is None
