"""Whether the GPU is free before a run: nobody else on it, and nothing keeps it busy."""

from __future__ import annotations

import time
from collections.abc import Callable

from gpubench.hardware.monitored import BUSY_PERCENT, MonitoredDevice, other_processes
from gpubench.hardware.nvml_call import Unavailable

# The driver's utilization is an average over up to 1 s, which may still include the last process of ours.
WATCHED_S = 2.0
LOOK_S = 0.1


def busy_before(
    device: MonitoredDevice | Unavailable | None,
    seconds: float = WATCHED_S,
    *,
    ours: frozenset[int] = frozenset(),
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> str | Unavailable:
    """Why the GPU is not free, as a clause; "" where it is, `Unavailable` where that cannot be told.

    It is busy when every look over `seconds` finds another's compute process or a utilization above 5 %. The first
    look that finds neither ends the wait, so a free GPU costs one look. ours: process ids that are no strangers.
    """
    if device is None:
        return Unavailable("a CPU is watched during sampling, not before")
    if isinstance(device, Unavailable):
        return device
    deadline = clock() + seconds
    while True:
        answer = _look(device, ours, seconds)
        if not isinstance(answer, str) or not answer or clock() >= deadline:
            return answer
        sleep(LOOK_S)


def _look(device: MonitoredDevice, ours: frozenset[int], seconds: float) -> str | Unavailable:
    listed = device.processes()
    # Nothing of ours has to be on the device yet, so whoever is listed and not ours is a stranger.
    others = listed if isinstance(listed, Unavailable) else other_processes(listed, ours, we_use_it=False)
    sample = device.sample()
    busy = sample.gpu_utilization_percent
    if not isinstance(others, Unavailable) and others:
        return f"another process is on the device: {'; '.join(str(process) for process in others)}"
    if busy is not None and busy > BUSY_PERCENT:
        return f"its utilization stayed above {BUSY_PERCENT:.0f} % for {seconds:g} s, at last {busy:.0f} %"
    if isinstance(others, Unavailable):
        return Unavailable(f"the processes on the device cannot be listed: {others.reason}")
    if busy is None:
        return Unavailable(f"its utilization cannot be read: {sample.unavailable['gpu_utilization_percent']}")
    return ""
