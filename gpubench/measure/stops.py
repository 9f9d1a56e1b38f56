"""Sees that a measured process, gpubench itself or the whole machine was stopped for a while.

By a signal (Ctrl-Z, SIGSTOP), a debugger, a frozen control group, a closed lid or a machine that was moved: the wall
clock goes on meanwhile, so that a sample of 50 ms takes seconds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from gpubench.measure.run_delay import run_delay_s

PERIOD_S = 0.05  # between two looks: as long as a sample, so that a stop that matters is seen
# This process was stopped if for so long it neither ran nor waited for a core nor had asked to sleep. A busy machine
# makes it wait for a core, which the kernel counts apart. Below: what a hypervisor or a page fault takes at times.
STOPPED_S = 0.5
STOPPED_STATES = (b"T", b"t")  # proc(5): by a signal; by a debugger
BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", None)  # goes on while the machine sleeps, as CLOCK_MONOTONIC does not


@dataclass(frozen=True)
class Tick:
    """This process at one moment, in seconds."""

    at: float  # time.monotonic()
    asleep: float  # that the machine slept, up to a constant
    accounted: float  # that its threads ran, or waited for a core


@dataclass(frozen=True)
class Stop:
    """Somebody did not run between two looks, `since` and `until` (time.monotonic())."""

    since: float
    until: float
    seconds: float  # more than between the looks where the machine slept meanwhile
    pid: int | None = None  # None: this process, and perhaps all others


def tick() -> Tick:
    """Now."""
    at = time.monotonic()
    asleep = 0.0 if BOOT_CLOCK is None else time.clock_gettime(BOOT_CLOCK) - at
    return Tick(at, asleep, time.process_time() + run_delay_s())


def unaccounted_s(before: Tick, after: Tick) -> float:
    """For how long nothing explains that the next look did not come: 0 where it came in time."""
    late = after.at - before.at + after.asleep - before.asleep - PERIOD_S
    return max(0.0, late - max(0.0, after.accounted - before.accounted))  # less where a thread has ended meanwhile


def is_stopped(pid: int) -> bool:
    """Whether process `pid` is stopped now; False where it has ended or the system does not tell."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:  # noqa: PTH123  a Path costs as much as the read
            text = file.read(512)
    except OSError:
        return False
    return text[text.rfind(b")") + 2 :][:1] in STOPPED_STATES  # a process's name may hold anything, brackets too


class StopWatch:
    """A thread that looks 20 times a second at the processes `pids` and, by coming late, at its own."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = frozenset(pids)
        self._stops: list[Stop] = []
        self._last = tick()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the thread, if it does not run."""
        if self._thread is None:
            self._last = tick()
            self._stopping.clear()
            self._thread = threading.Thread(target=self._run, name="gpubench-stops", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Ends the thread; `stopped_s` still works on what was seen."""
        if self._thread is not None:
            self._stopping.set()
            self._thread.join()
            self._thread = None

    def stopped_s(self, pid: int, start: float, end: float) -> float:
        """For how many seconds process `pid` or this one was stopped, if that was between two `time.monotonic()` times.

        Right to within the time between two looks.
        """
        if self._thread is not None:
            self._look()  # this thread may be the first to run again
        with self._lock:
            seen = [stop for stop in self._stops if stop.since < end and stop.until > start]
        return sum(stop.seconds for stop in seen if stop.pid in (pid, None))

    def _run(self) -> None:
        while not self._stopping.wait(PERIOD_S):
            self._look()

    def _look(self) -> None:
        with self._lock:
            before, now = self._last, tick()
            lost_s = unaccounted_s(before, now)
            if lost_s > STOPPED_S:
                self._stops.append(Stop(before.at, now.at, lost_s))
            else:  # else it would be counted twice
                between = now.at - before.at
                self._stops += [Stop(before.at, now.at, between, pid) for pid in self._pids if is_stopped(pid)]
            self._last = now
