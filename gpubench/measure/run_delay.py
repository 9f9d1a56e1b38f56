"""How long the kernel kept this process waiting for a core: what a busy machine adds to the wall clock (Linux)."""

from __future__ import annotations

import os

_NANOSECOND = 1e-9


def run_delay_s() -> float:
    """Seconds that this process's threads have been ready to run without a core so far; 0 where that is not told.

    The second figure of schedstat (Documentation/scheduler/sched-stats.rst). A thread that sleeps, or that a signal has
    stopped, is not ready to run. Counts of threads that have ended are lost.
    """
    total = 0
    try:
        threads = os.listdir("/proc/self/task")  # noqa: PTH208  a Path costs more than the read
    except OSError:
        return 0.0
    for thread in threads:
        try:
            with open(f"/proc/self/task/{thread}/schedstat", "rb", buffering=0) as file:  # noqa: PTH123
                total += int(file.read(128).split()[1])
        except (OSError, IndexError, ValueError):
            continue  # it has just ended, or this kernel does not tell
    return total * _NANOSECOND
