"""Whether a step still takes as long as when it was sampled: it is timed once more, later and without a profiler.

A start that is slow for longer than the warm-up gives samples that agree with each other and with nothing that follows.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from gpubench.measure.run_delay import run_delay_s
from gpubench.measure.timing import Step, Timer

# Times as long, or as short. Identical processes differ by up to 60 % on a shared machine (docs/measurement.md), clocks
# by about as much; what is waited for a core is taken off before.
CHANGED = 2.0
BLOCKS = 5  # their median and their least stand for them
LIMIT_S = 1.0  # after that much time no further block begins
GROWTH = 4  # of a block that is still too short to be timed


@dataclass(frozen=True)
class Pace:
    """Seconds per step, in order, and for how many of them the process waited for a core while it took them."""

    seconds: Sequence[float]
    waited_s: float

    def __add__(self, later: Pace) -> Pace:
        """Both together; `waited_s` is the mean, weighted by their samples."""
        ours, theirs = len(self.seconds), len(later.seconds)
        waited = (self.waited_s * ours + later.waited_s * theirs) / max(ours + theirs, 1)
        return Pace([*self.seconds, *later.seconds], waited)


def time_again(step: Step, timer: Timer, *, iterations: int, block_s: float) -> Pace:
    """The pace of `step` now, in blocks of at most `iterations` and about `block_s` seconds."""
    begin, waited, steps, seconds, per_block = timer.now(), run_delay_s(), 0, list[float](), 1
    while len(seconds) < BLOCKS and (not seconds or timer.now() - begin < LIMIT_S):
        wall = timer.block(step, per_block).wall_s
        steps += per_block
        if wall < block_s / GROWTH and per_block < iterations:
            # The first ones are the slowest: others ran meanwhile and filled the caches.
            per_block = min(iterations, GROWTH * per_block)
        else:
            seconds.append(wall / per_block)
    return Pace(seconds, max(0.0, run_delay_s() - waited) / steps)


def change(sampled: Pace, again: Pace) -> float | None:
    """How many times as long a step takes as when it was sampled (0.5: half as long); None below `CHANGED`.

    What the slower of both waited for a core is taken off: a busy machine is no change of the step.
    """
    before, after = statistics.median(sampled.seconds), statistics.median(again.seconds)
    slower = min(again.seconds) - again.waited_s > CHANGED * before
    faster = before - sampled.waited_s > CHANGED * after
    if not (slower or faster):
        return None
    return after / before if before > 0 else math.inf
