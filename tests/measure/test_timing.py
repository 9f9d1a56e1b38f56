"""Block timing against a scripted clock, so that every figure is exact."""

import time

import pytest

from gpubench.measure.timing import BlockTime, Stopping, WallTimer, calibrate, relative_spread, sample, warm_up


class Script:
    """A clock that only steps move, and a step that takes the next scripted time (the last one for ever)."""

    def __init__(self, *seconds: float) -> None:
        self.time, self.seconds, self.calls = 100.0, list(seconds), 0

    def now(self) -> float:
        return self.time

    def step(self) -> None:
        self.time += self.seconds[min(self.calls, len(self.seconds) - 1)]
        self.calls += 1


LOOSE = Stopping(min_samples=4, min_s=0.0, target_spread=1.0, max_s=100.0)


def test_blocks_hold_the_exact_mean_of_their_iterations() -> None:
    script = Script(1.0, 3.0, 2.0, 2.0, 5.0, 7.0, 1.0, 1.0)
    taken = sample(script.step, WallTimer(script.now), iterations=2, stopping=LOOSE)
    assert taken.seconds == (2.0, 2.0, 6.0, 1.0)
    assert taken.iterations_per_sample == 2
    assert taken.unmet == ""


def test_a_block_is_as_long_as_asked() -> None:
    assert calibrate(0.003, 0.05) == 17
    assert calibrate(0.05, 0.05) == 1
    assert calibrate(2.0, 0.05) == 1
    assert calibrate(0.0, 0.05) == 1


def test_sampling_goes_on_until_the_least_time() -> None:
    script = Script(0.1)
    stopping = Stopping(min_samples=2, min_s=1.0, target_spread=1.0, max_s=100.0)
    assert len(sample(script.step, WallTimer(script.now), iterations=1, stopping=stopping).seconds) in (10, 11)


def test_time_running_out_names_the_condition_that_was_not_met() -> None:
    script = Script(*([1.0, 2.0] * 50))
    stopping = Stopping(min_samples=4, min_s=0.0, target_spread=0.01, max_s=12.0)
    taken = sample(script.step, WallTimer(script.now), iterations=1, stopping=stopping)
    assert sum(taken.seconds) >= 12.0
    assert "spread" in taken.unmet


def test_a_step_longer_than_all_time_still_gives_two_samples() -> None:
    script = Script(50.0)
    stopping = Stopping(min_samples=10, min_s=0.0, target_spread=1.0, max_s=2.0)
    taken = sample(script.step, WallTimer(script.now), iterations=1, stopping=stopping)
    assert taken.seconds == (50.0, 50.0)
    assert taken.unmet == "2 of 10 samples"


def test_a_slow_start_is_left_to_the_warm_up() -> None:
    script = Script(*[0.4] * 20, 0.1)
    warm = warm_up(script.step, WallTimer(script.now), min_iterations=3, max_s=100.0, block_s=0.05)
    # The slow level is steady too, as far as anyone can tell; but a change of level inside the window is not.
    assert warm.steady is True
    script = Script(0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
    warm = warm_up(script.step, WallTimer(script.now), min_iterations=3, max_s=100.0, block_s=0.05)
    assert warm.steady is True
    assert warm.seconds_per_iteration == pytest.approx(0.1)


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


def test_the_device_clock_decides_where_there_is_one() -> None:
    assert BlockTime(wall_s=2.0, device_s=1.5).seconds == 1.5
    assert BlockTime(wall_s=2.0).seconds == 2.0


def test_setting_the_wall_clock_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    block = WallTimer().block(lambda: time.sleep(0.02), 2)
    assert 0.04 <= block.wall_s < 10


def test_relative_spread() -> None:
    assert relative_spread([1.0, 1.0, 1.0]) == 0.0
    assert relative_spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 3)
    assert relative_spread([1.0]) == 0.0
