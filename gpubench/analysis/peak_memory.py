"""Which of the recorded figures is a configuration's memory."""

from __future__ import annotations

from collections.abc import Iterable

from gpubench.flags import GROWING_MEMORY
from gpubench.report.model import Measurement, Memory
from gpubench.toggles.traits import replays_graphs

# Peaks that differ by less are equal. CUDA: the caching allocator asks the driver for segments of up to
# 20 MiB at a time (c10/cuda/CUDACachingAllocator, kLargeBuffer). CPU, seen: the resident memory that one small conv net
# added differed by up to 16 MiB over six identical processes (torch 2.13, 2 cores).
RESOLUTION_BYTES = 20 * 2**20

MEANING = {
    "cuda": "peak memory reserved by torch's allocator during the measured steps",
    "cpu": "peak resident memory of the process beyond what Python and torch held before the model was built",
}


def grows(row: Measurement) -> bool:
    """Whether its memory grows with every step, so that its peak only says how many steps there were."""
    return any(flag.kind == GROWING_MEMORY.name for flag in row.flags)


def peak_bytes(row: Measurement, kind: str) -> int | None:
    """Peak bytes of the measured steps: reserved by torch on CUDA, resident beyond the start on a CPU."""
    memory = row.memory
    if memory is None:
        return None
    if kind == "cuda":
        return memory.peak_memory_reserved_bytes
    return _beyond_start(memory, memory.host_peak_resident_bytes)


def gated_bytes(row: Measurement, kind: str) -> int | None:
    """The bytes that reports are compared by: `peak_bytes`, but allocated ones where they are `counted_exactly`."""
    if counted_exactly(row, kind):
        return row.memory.peak_memory_allocated_bytes if row.memory else None
    return peak_bytes(row, kind)


def counted_exactly(row: Measurement, kind: str) -> bool:
    """Whether torch counts every byte of the row's steps; else figures within `RESOLUTION_BYTES` are equal.

    It does on CUDA, as allocated bytes. But what a CUDA graph works in lies in a pool of the graph's own, of which
    only the segments count, as reserved: while the graph is replayed nothing is allocated.
    """
    return kind == "cuda" and not replays_graphs(row.configuration)


def needed_bytes(row: Measurement, kind: str) -> int | None:
    """Bytes that must be free for the whole run: the larger of `peak_bytes` and the peak of warm-up and compiling.

    On CUDA with `context_bytes`, since a card has to hold those as well.
    """
    peak = peak_bytes(row, kind)
    if row.memory is None or peak is None:
        return None
    if kind == "cuda":
        return max(peak, row.memory.warmup_peak_memory_allocated_bytes or 0) + context_bytes(row.memory)
    return max(peak, _beyond_start(row.memory, row.memory.host_warmup_peak_resident_bytes) or 0)


def context_bytes(memory: Memory) -> int:
    """Device memory outside torch's allocator: CUDA context, libraries and loaded kernels; 0 where nobody told it.

    The driver's figure for the process where there is one, which others on the device cannot move.
    """
    process, reserved = memory.device_process_memory_bytes, memory.peak_memory_reserved_bytes
    if process is not None and reserved is not None:
        return max(process - reserved, 0)
    return memory.device_context_bytes or 0


def together_bytes(rows: Iterable[Measurement], kind: str) -> int | None:
    """Bytes that all of `rows` need at the same time; None where the memory of one is unknown."""
    needed = [needed_bytes(row, kind) for row in rows]
    known = [value for value in needed if value is not None]
    return sum(known) if len(known) == len(needed) else None


def _beyond_start(memory: Memory, peak: int | None) -> int | None:
    if peak is None or memory.host_resident_at_start_bytes is None:
        return None
    return max(peak - memory.host_resident_at_start_bytes, 0)
