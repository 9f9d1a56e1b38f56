"""Whether a step that is timed once more takes as long as when it was sampled."""

from __future__ import annotations

import pytest

from gpubench.measure.repeat import BLOCKS, Pace, change, time_again
from gpubench.measure.timing import WallTimer

SAMPLED = Pace([0.010, 0.011, 0.010], 0.0)


class Steps:
    """A clock that each step moves on by `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.at, self.calls = seconds, 0.0, 0

    def step(self) -> None:
        self.at += self.seconds
        self.calls += 1


@pytest.mark.parametrize("step_s", [2e-6, 0.001, 0.02, 3.0])
@pytest.mark.parametrize("iterations", [1, 5, 20_000])
def test_a_step_is_timed_again_in_blocks_that_cost_little(step_s: float, iterations: int) -> None:
    """However long a step took when `iterations` were chosen."""
    script = Steps(step_s)
    pace = time_again(script.step, WallTimer(lambda: script.at), iterations=iterations, block_s=0.05)
    assert pace.seconds == pytest.approx([step_s] * len(pace.seconds))
    assert len(pace.seconds) == (1 if step_s > 1 else BLOCKS)
    assert script.at <= max(1.0, step_s)


@pytest.mark.parametrize("again", [[0.010] * 5, [0.019] * 5, [0.0052] * 5, [0.010, 0.5, 0.5, 0.5, 0.5]])
def test_what_a_machine_does_by_itself_is_no_change(again: list[float]) -> None:
    assert change(SAMPLED, Pace(again, 0.0)) is None


@pytest.mark.parametrize(("step_s", "ratio"), [(0.021, 2.1), (0.0049, 0.49), (0.000001, 0.0001), (8.0, 800.0)])
def test_another_pace_is_told_in_both_directions(step_s: float, ratio: float) -> None:
    assert change(SAMPLED, Pace([step_s] * BLOCKS, 0.0)) == pytest.approx(ratio)


def test_waiting_for_a_core_is_no_change() -> None:
    busy = Pace([0.040] * 5, 0.028)
    assert change(SAMPLED, busy) is None
    assert change(busy, SAMPLED) is None
    assert change(SAMPLED, Pace([0.040] * 5, 0.010)) == pytest.approx(4.0)


def test_turns_are_added_up_by_their_samples() -> None:
    both = Pace([1.0, 1.0, 1.0], 0.4) + Pace([2.0], 0.0)
    assert (both.seconds, both.waited_s) == ([1.0, 1.0, 1.0, 2.0], pytest.approx(0.3))
    assert Pace([], 0.0) + SAMPLED == Pace([*SAMPLED.seconds], 0.0)
