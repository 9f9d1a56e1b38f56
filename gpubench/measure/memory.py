"""Peak memory of this process: torch's allocator on a GPU, resident memory on the host. Bytes."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gpubench.hardware.cpu import read_sizes
from gpubench.measure.malloc import allocated_bytes

if TYPE_CHECKING:
    import torch

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
LEAK_BYTES = 2**12  # per step: a page; Python's own lists and dicts grow by less now and then
GRAIN_BYTES = 2**20  # of resident memory, in all: less is how the kernel and an allocator's pools count
FEW_DIFFERENCES = 2  # of so few steps a late allocation may be the median
RESET_PEAK = "5"  # proc(5): resets the peak resident set size ("high water mark")


@dataclass(frozen=True)
class HostMemory:
    """Resident bytes now, and their peak since the last reset; None where the system does not report them."""

    resident: int | None
    peak: int | None
    unavailable: str = ""


def host_memory() -> HostMemory:
    """Resident memory of this process in bytes, now and at its peak."""
    try:
        sizes = read_sizes(STATUS)
    except OSError as error:
        return HostMemory(None, None, f"{STATUS} cannot be read: {error.strerror}")
    lacking = "" if {"VmRSS", "VmHWM"} <= sizes.keys() else f"{STATUS} lacks VmRSS, VmHWM"
    return HostMemory(sizes.get("VmRSS"), sizes.get("VmHWM"), lacking)


def reset_host_peak() -> str:
    """Sets the peak of resident memory back to the present; returns why not, or an empty string."""
    try:
        CLEAR_REFS.write_text(RESET_PEAK)
    except OSError as error:
        return f"the peak of resident memory cannot be reset ({error.strerror}), so it includes build and warm-up"
    return ""


def device_peaks(device: torch.device) -> tuple[int, int] | tuple[None, None]:
    """Peak bytes that torch's CUDA allocator allocated and reserved; None on a CPU, whose allocator keeps no peaks."""
    import torch

    if device.type != "cuda":
        return None, None
    return torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)


def beyond_allocator(device: torch.device, free_at_start: int | None) -> int | None:
    """Device memory of this process outside torch's allocator: the CUDA context, libraries and loaded kernels.

    free_at_start: what was free on the device before this process touched it; None, and the answer too, if unknown.
    """
    import torch

    if device.type != "cuda" or free_at_start is None:
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return max(0, free_at_start - free - torch.cuda.memory_reserved(device))


def reset_device_peak(device: torch.device) -> None:
    """Gives cached blocks back and starts the allocator's peaks anew."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def in_use(device: torch.device) -> int | None:
    """Bytes held now: by torch's allocator on a GPU; on a CPU by all of malloc, or else resident (`is_exact`)."""
    import torch

    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    allocated = allocated_bytes()
    return host_memory().resident if allocated is None else allocated


def is_exact(device: torch.device) -> bool:
    """Whether `in_use` counts bytes rather than pages."""
    return device.type == "cuda" or allocated_bytes() is not None


def allocation_retries(device: torch.device) -> int | None:
    """How often torch's CUDA allocator had to give cached blocks back to make room; None on a CPU."""
    import torch

    return int(torch.cuda.memory_stats(device).get("num_alloc_retries", 0)) if device.type == "cuda" else None


def growth(levels: Sequence[int | None], before: int | None, steps: int, *, exact: bool) -> int | None:
    """Bytes that each step adds: the median, so that one late allocation says nothing; None below two readings.

    At most what was added since `before`, over the `steps` since then: an allocator's pools grow for a while too, and
    garbage waits to be collected. 0 where all that was added is within the grain of the readings.
    """
    known = [level for level in levels if level is not None]
    if len(known) < 2:
        return None
    differences = [later - earlier for earlier, later in itertools.pairwise(known)]
    added, since = round(statistics.median(differences)), known[0] if before is None else before
    sure = exact and len(differences) > FEW_DIFFERENCES
    if added > 0 and not sure and known[-1] - since < GRAIN_BYTES:
        return 0
    return added if before is None else min(added, max(known[-1] - before, 0) // max(steps, 1))
