"""Timing of blocks of iterations. A timer is all that knows the device; when to stop stands in `stopping`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from gpubench.measure.stopping import StoppingRule

if TYPE_CHECKING:
    import torch

Step = Callable[[], object]

ENQUEUED_STEPS = 5  # whose median is the host's time for a step
ENQUEUE_S = 0.5  # of long steps fewer


@dataclass(frozen=True)
class BlockTime:
    """Seconds of one block of iterations: by the wall clock, and between two events on the device where it has them."""

    wall_s: float
    device_s: float | None = None


class Timer(Protocol):
    """Times blocks so that all work of a block is finished inside it."""

    def block(self, step: Step, iterations: int) -> BlockTime:
        """The time of `iterations` calls of `step`."""

    def enqueue(self, step: Step) -> float | None:
        """Seconds until one call of `step` returns that began on an idle device; None where it waits for its work."""

    def now(self) -> float:
        """Seconds of a clock that never goes back."""


class WallTimer:
    """A clock around the block: right where a call returns only when its work is done (CPU).

    perf_counter is monotonic: setting the system's time changes nothing.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self.now = clock or time.perf_counter

    def block(self, step: Step, iterations: int) -> BlockTime:
        """The wall time of `iterations` calls of `step`."""
        start = self.now()
        for _ in range(iterations):
            step()
        return BlockTime(self.now() - start)

    def enqueue(self, step: Step) -> None:
        """Nothing: a call returns when its work is done."""


class CudaTimer:
    """CUDA events around the block, which is synchronized before and after; the wall clock around all of it."""

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

    def enqueue(self, step: Step) -> float:
        """The host's time for one call of `step`: nothing before it delays its launches."""
        self.cuda.synchronize(self.device)
        start = self.now()
        step()
        seconds = self.now() - start
        self.cuda.synchronize(self.device)
        return seconds


def enqueue_seconds(step: Step, timer: Timer, seconds_per_step: float) -> float | None:
    """The host's time to enqueue one step; None where the host is the device, or the device's timer has none."""
    count = min(ENQUEUED_STEPS, max(1, int(ENQUEUE_S // max(seconds_per_step, 1e-9))))
    seconds = [timer.enqueue(step) for _ in range(count)]
    known = [each for each in seconds if each is not None]
    return statistics.median(known) if known else None


def calibrate(seconds_per_iteration: float, block_s: float) -> int:
    """How many iterations make a block of at least `block_s` seconds."""
    if seconds_per_iteration <= 0:
        return 1
    return max(1, -int(-block_s // seconds_per_iteration))


@dataclass(frozen=True)
class Samples:
    """Seconds per iteration by the wall clock, one value a block, and by the device's events where it has them."""

    seconds: tuple[float, ...]
    device_seconds: tuple[float, ...] | None
    iterations_per_sample: int
    unmet: str = ""  # the condition of the stopping rule that the time limit left unmet


def sample(step: Step, timer: Timer, *, iterations: int, rule: StoppingRule) -> Samples:
    """Times blocks of `iterations` calls of `step` until the rule is met or its time is up."""
    begin = timer.now()
    blocks: list[BlockTime] = []
    seconds: list[float] = []
    while True:
        blocks.append(timer.block(step, iterations))
        seconds.append(blocks[-1].wall_s / iterations)
        elapsed = timer.now() - begin
        unmet = rule.unmet(seconds, elapsed)
        if not unmet or rule.out_of_time(seconds, elapsed):
            return _samples(blocks, iterations, unmet)


def sample_blocks(step: Step, timer: Timer, *, iterations: int, count: int) -> Samples:
    """Times exactly `count` blocks of `iterations` calls of `step`."""
    return _samples([timer.block(step, iterations) for _ in range(count)], iterations)


def _samples(blocks: list[BlockTime], iterations: int, unmet: str = "") -> Samples:
    device = [block.device_s / iterations for block in blocks if block.device_s is not None]
    return Samples(
        seconds=tuple(block.wall_s / iterations for block in blocks),
        device_seconds=tuple(device) if device else None,
        iterations_per_sample=iterations,
        unmet=unmet,
    )
