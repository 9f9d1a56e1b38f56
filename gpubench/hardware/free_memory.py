"""How much memory this process may still take, from /proc and the control group."""

from __future__ import annotations

import re
from pathlib import Path

from gpubench.hardware.cgroup import memory_limit_bytes
from gpubench.hardware.nvml_call import Unavailable


def available_memory_bytes(root: Path = Path("/")) -> int | Unavailable:
    """Bytes that can be had without swapping: the kernel's estimate, and no more than the control group allows."""
    try:
        line = re.search(r"^MemAvailable:\s+(\d+) kB", (root / "proc/meminfo").read_text(), re.MULTILINE)
    except OSError as error:
        return Unavailable(f"/proc/meminfo cannot be read: {error.strerror}")
    if line is None:
        return Unavailable("/proc/meminfo has no MemAvailable")
    limit = memory_limit_bytes(root)
    free = int(line[1]) * 1024
    return free if isinstance(limit, Unavailable) else min(free, limit)
