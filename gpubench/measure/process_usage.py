"""CPU time and memory of another process, without being its parent and without a library."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from gpubench.hardware.nvml_call import Unavailable

PAGE_BYTES = os.sysconf("SC_PAGESIZE") if sys.platform == "linux" else 0
CPU_CLOCK_OF_PROCESS = 2  # clock_getcpuclockid(3): the scheduler's exact time, all threads together


@dataclass(frozen=True)
class Usage:
    """A process at one moment."""

    cpu_s: float  # since it started, all threads, children not
    resident_bytes: int


def read_usage(pid: int) -> Usage | Unavailable:
    """CPU seconds and resident bytes of process `pid`.

    The process's CPU clock is read rather than /proc/<pid>/stat, whose ticks of 10 ms are a fifth of the time
    between two readings at 20 Hz.
    """
    if sys.platform != "linux":
        return Unavailable(f"another process's CPU time and memory are not read on {sys.platform}")
    try:
        cpu_s = time.clock_gettime((~pid << 3) | CPU_CLOCK_OF_PROCESS)
        with open(f"/proc/{pid}/statm", "rb", buffering=0) as file:  # noqa: PTH123  a Path costs as much as the read
            pages = int(file.read(128).split()[1])
    except (OSError, IndexError, ValueError) as error:
        ended = not Path(f"/proc/{pid}").exists()
        return Unavailable(f"process {pid} has ended" if ended else f"process {pid} cannot be read: {error}")
    if pages == 0:  # a zombie: it gave its memory back and waits for its parent
        return Unavailable(f"process {pid} has ended")
    return Usage(cpu_s, pages * PAGE_BYTES)
