"""What this process's memory allocator does, read from glibc and the kernel (Linux only)."""

from __future__ import annotations

import ctypes
import functools
import re
from pathlib import Path
from typing import Any

from gpubench.hardware.cpu import read_sizes

_MAPS_LINE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+\s*(\S.*)?$")


# mallinfo(3): all fields are size_t, in this order.
_MALLINFO2_FIELDS = (
    *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
    *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
)


class Mallinfo2(ctypes.Structure):
    """glibc's memory statistics: `hblks` blocks of `hblkhd` bytes have their own mapping, `uordblks` bytes are used in
    the arenas.
    """

    hblks: int
    hblkhd: int
    uordblks: int
    _fields_ = tuple((name, ctypes.c_size_t) for name in _MALLINFO2_FIELDS)


def heap() -> Mallinfo2 | None:
    """glibc's current statistics; None if the C library has no `mallinfo2` (glibc before 2.33, other libraries)."""
    function = _mallinfo2()
    if function is None:
        return None
    function.restype = Mallinfo2
    info: Mallinfo2 = function()
    return info


def allocated_bytes() -> int | None:
    """Bytes that this process has allocated and not freed, exactly; None where glibc does not provide them."""
    info = heap() if "libc.so" in (malloc_library() or "") else None
    return None if info is None else info.uordblks + info.hblkhd


@functools.cache
def _mallinfo2() -> Any:
    return getattr(ctypes.CDLL(None), "mallinfo2", None)


def huge_page_bytes() -> int | None:
    """Bytes of this process's anonymous memory in huge pages; None if the kernel does not report them."""
    try:
        return read_sizes(Path("/proc/self/smaps_rollup")).get("AnonHugePages")
    except OSError:
        return None


@functools.cache
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
