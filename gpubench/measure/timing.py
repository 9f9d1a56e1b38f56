"""Timing of blocks of iterations, and when to stop. A timer is all that knows the device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from gpubench.measure.steady import WINDOW, is_steady

if TYPE_CHECKING:
    import torch

Step = Callable[[], object]

SETTLED_SAMPLES = 16  # halves of 8: the fewest whose quartiles are not their extremes
SETTLED_MEDIAN = 0.01  # halves' medians agree within 1 %
SETTLED_SPREAD = 0.5  # the smaller spread is at least half of the larger


@dataclass(frozen=True)
class BlockTime:
    """Seconds of one block of iterations: by the wall clock, and on the device where it has a clock of its own."""

    wall_s: float
    device_s: float | None = None

    @property
    def seconds(self) -> float:
        """The device's time where there is one, else the wall clock's."""
        return self.wall_s if self.device_s is None else self.device_s


class Timer(Protocol):
    """Times blocks so that all work of a block is finished inside it."""

    def block(self, step: Step, iterations: int) -> BlockTime:
        """The time of `iterations` calls of `step`."""
        ...

    def now(self) -> float:
        """Seconds of a clock that never goes back."""
        ...


class WallTimer:
    """perf_counter around the block: right where a call returns only when its work is done (CPU)."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.now = clock

    def block(self, step: Step, iterations: int) -> BlockTime:
        """The wall time of `iterations` calls of `step`."""
        start = self.now()
        for _ in range(iterations):
            step()
        return BlockTime(self.now() - start)


class CudaTimer:
    """CUDA events around the block, which is synchronized before and after; the wall clock beside them."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self.device, self.cuda = device, torch.cuda
        self.now = time.perf_counter

    def block(self, step: Step, iterations: int) -> BlockTime:
        """Wall and device time of `iterations` calls of `step`."""
        first, last = self.cuda.Event(enable_timing=True), self.cuda.Event(enable_timing=True)
        self.cuda.synchronize(self.device)
        start = self.now()
        first.record()
        for _ in range(iterations):
            step()
        last.record()
        self.cuda.synchronize(self.device)
        return BlockTime(self.now() - start, first.elapsed_time(last) / 1e3)  # elapsed_time is in milliseconds


def calibrate(seconds_per_iteration: float, block_s: float) -> int:
    """How many iterations make a block of at least `block_s` seconds."""
    if seconds_per_iteration <= 0:
        return 1
    return max(1, -int(-block_s // seconds_per_iteration))


@dataclass(frozen=True)
class WarmUp:
    """What warming up took: `steady` is None where it ended with too few timings to tell."""

    timings_s: tuple[float, ...]  # per iteration
    iterations: int
    steady: bool | None
    seconds_per_iteration: float


def warm_up(step: Step, timer: Timer, *, min_iterations: int, max_s: float, block_s: float) -> WarmUp:
    """Runs `step` until its timings are steady, at least `min_iterations` times and for about `max_s` seconds at most.

    Short steps are timed in blocks of a fifth of `block_s`, so that a clock's grain is not taken for noise.
    """
    begin, timings, iterations, per_block = timer.now(), list[float](), 0, 1
    while True:
        seconds = timer.block(step, per_block).seconds
        timings.append(seconds / per_block)
        iterations += per_block
        if iterations >= min_iterations:
            if is_steady(timings):
                steady: bool | None = True
                break
            if timer.now() - begin >= max_s:
                steady = False if len(timings) >= WINDOW else None
                break
        if len(timings) <= 2:  # the first calls may still load code; from the third on the block length stands
            per_block = calibrate(timings[-1], block_s / 5)
    recent = timings[-WINDOW:]
    return WarmUp(tuple(timings), iterations, steady, statistics.median(recent))


@dataclass(frozen=True)
class Stopping:
    """When enough samples are taken: enough of them, over enough time, and a spread that is small or has settled.

    Or when the time is up, whatever is still unmet then.
    """

    min_samples: int
    min_s: float
    target_spread: float  # relative interquartile range
    max_s: float

    def verdict(self, samples: list[float], elapsed_s: float) -> tuple[bool, str]:
        """(stop now?, the condition that was not met; empty if all were)."""
        if len(samples) < self.min_samples:
            unmet = f"{len(samples)} of {self.min_samples} samples"
        elif elapsed_s < self.min_s:
            unmet = f"{elapsed_s:.2f} of {self.min_s:g} s of sampling"
        elif (spread := relative_spread(samples)) > self.target_spread and not has_settled(samples):
            unmet = f"spread {spread:.1%} above {self.target_spread:.1%}"
        else:
            return True, ""
        # Two samples are the fewest that have a spread at all.
        return elapsed_s >= self.max_s and len(samples) >= min(2, self.min_samples), unmet


def has_settled(samples: list[float]) -> bool:
    """Whether more samples would tell little more: the later half has the median and the spread of the earlier one."""
    if len(samples) < SETTLED_SAMPLES:
        return False
    earlier, later = samples[: len(samples) // 2], samples[len(samples) // 2 :]
    middles = statistics.median(earlier), statistics.median(later)
    spreads = relative_spread(earlier), relative_spread(later)
    return abs(middles[0] - middles[1]) <= SETTLED_MEDIAN * max(middles) and abs(
        spreads[0] - spreads[1]
    ) <= SETTLED_SPREAD * max(spreads)


def relative_spread(samples: list[float]) -> float:
    """The interquartile range over the median of `samples`, without unit."""
    if len(samples) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return (high - low) / middle if middle > 0 else 0.0


@dataclass(frozen=True)
class Samples:
    """Seconds per iteration, one value a block."""

    seconds: tuple[float, ...]
    wall_seconds: tuple[float, ...]
    iterations_per_sample: int
    unmet: str = ""  # the stopping condition that time ran out on
    elapsed_s: float = field(default=0.0)


def sample(step: Step, timer: Timer, *, iterations: int, stopping: Stopping) -> Samples:
    """Times blocks of `iterations` calls of `step` until `stopping` says so."""
    begin = timer.now()
    seconds, wall = list[float](), list[float]()
    while True:
        block = timer.block(step, iterations)
        seconds.append(block.seconds / iterations)
        wall.append(block.wall_s / iterations)
        elapsed = timer.now() - begin
        stop, unmet = stopping.verdict(seconds, elapsed)
        if stop:
            return Samples(tuple(seconds), tuple(wall), iterations, unmet, elapsed)
