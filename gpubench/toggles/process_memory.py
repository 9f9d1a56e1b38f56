"""What this process's memory allocator does, read from glibc and the kernel (Linux only)."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path

_MAPS_LINE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+\s*(\S.*)?$")


# mallinfo(3): all fields are size_t, in this order.
_MALLINFO2_FIELDS = (
    *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
    *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
)


class _Mallinfo2(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_size_t) for name in _MALLINFO2_FIELDS)


@dataclass(frozen=True)
class Heap:
    """glibc's memory statistics of this process."""

    mapped_regions: int  # blocks with their own mapping
    used_bytes: int  # inside the arenas


def heap() -> Heap | None:
    """glibc's current statistics; None if the C library has no `mallinfo2` (glibc before 2.33, other libraries)."""
    function = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if function is None:
        return None
    function.restype = _Mallinfo2
    info = function()
    return Heap(mapped_regions=info.hblks, used_bytes=info.uordblks)


def huge_page_bytes() -> int | None:
    """Bytes of this process's anonymous memory in huge pages; None if the kernel does not report them."""
    try:
        text = Path("/proc/self/smaps_rollup").read_text()
    except OSError:
        return None
    found = re.search(r"^AnonHugePages:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def malloc_library() -> str | None:
    """The file that provides `malloc`, such as `/usr/lib/x86_64-linux-gnu/libc.so.6`; None if unreadable."""
    address = ctypes.cast(ctypes.CDLL(None).malloc, ctypes.c_void_p).value
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        found = _MAPS_LINE.match(line)
        if found and address is not None and int(found[1], 16) <= address < int(found[2], 16):
            return found[3]
    return None
