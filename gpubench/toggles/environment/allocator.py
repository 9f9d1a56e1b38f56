"""Which allocator provides CPU memory: glibc's default or tuned, huge pages, or a preloaded library.

By default glibc maps each large block on its own and unmaps it when freed, so activations are mapped and faulted in
page by page at every step. The tuned values keep such blocks in the heap. All of them are set before a process starts.
"""

from __future__ import annotations

import ctypes.util
import functools
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gpubench.measure import malloc
from gpubench.report.model import Value
from gpubench.toggles.toggle import EvidenceResult, Requirement, Scope, Stage, Toggle

if TYPE_CHECKING:
    from gpubench.toggles.model_context import ModelContext

# Bytes. 4 GiB: no activation gets a mapping of its own and the heap is never trimmed; 256 MiB: the heap grows in steps
# large enough to be rare. Found by trial on a 2-core virtual machine: docs/measurement.
_TUNED = {
    "glibc.malloc.mmap_threshold": "4294967296",
    "glibc.malloc.trim_threshold": "4294967296",
    "glibc.malloc.top_pad": "268435456",
}
_HUGE_PAGES = {"glibc.malloc.hugetlb": "1"}  # madvise them (glibc manual, Memory Allocation Tunables)
_TUNABLES: dict[str, dict[str, str]] = {
    "tuned": _TUNED,
    "huge-pages": _HUGE_PAGES,
    "tuned-huge-pages": _TUNED | _HUGE_PAGES,
}
_PRELOADED = {"jemalloc": ("jemalloc",), "tcmalloc": ("tcmalloc_minimal", "tcmalloc")}
_FOLDERS = ("/usr/lib", "/usr/lib64", "/usr/lib/*-linux-gnu", "/usr/local/lib", "/usr/local/lib64")
_HUGE_PAGE_SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_TRIAL_BYTES = 64 << 20  # above glibc's largest automatic mmap threshold of 32 MiB (mallopt(3), M_MMAP_THRESHOLD)


def on_cpu(scope: Scope) -> str | None:
    """Applies on a CPU."""
    return None if scope.device.kind == "cpu" else f"torch's own allocator manages memory on {scope.device.name}"


def _glibc(least: tuple[int, int]) -> str | None:
    name, version = platform.libc_ver()
    if name != "glibc":
        return f"needs glibc, this Python runs on {name or 'another C library'}"
    have = tuple(int(part) for part in version.split(".")[:2])
    return None if have >= least else f"needs glibc {least[0]}.{least[1]}, this is {version}"


def needs_tunables(_: Scope) -> str | None:
    """glibc 2.26, the first with malloc tunables."""
    return _glibc((2, 26))


def needs_huge_pages(_: Scope) -> str | None:
    """glibc 2.35, the first that asks for huge pages, and a kernel that grants them."""
    reason = _glibc((2, 35))
    if reason is None and not _HUGE_PAGE_SWITCH.exists():
        return "needs transparent huge pages, which this kernel lacks"
    if reason is None and "[never]" in _HUGE_PAGE_SWITCH.read_text():
        return f"needs transparent huge pages, but {_HUGE_PAGE_SWITCH} is set to never"
    return reason


@functools.cache
def library(value: str) -> str | None:
    """Path or loader name of an allocator's shared library; None if it is not installed."""
    for name in _PRELOADED[value]:
        for folder in (*_FOLDERS, f"{sys.prefix}/lib"):
            found = sorted(Path("/").glob(f"{folder.lstrip('/')}/lib{name}.so*"))
            if found:
                return str(found[0])
    return next(filter(None, map(ctypes.util.find_library, _PRELOADED[value])), None)


def _needs_library(value: str) -> Requirement:
    def check(_: Scope) -> str | None:
        """The allocator's shared library is installed."""
        return None if library(value) else f"needs the library lib{_PRELOADED[value][-1]}, which is not installed"

    return Requirement(device_kinds=("cpu",), check=check)


def _is_allocator(path: str) -> bool:
    return any(f"lib{name}" in path for names in _PRELOADED.values() for name in names)


def _variables(value: str, tunables: str, preload: str) -> dict[str, str]:
    pairs = (pair.split("=", 1) for pair in tunables.split(":") if "=" in pair)
    kept = {name: text for name, text in pairs if not name.startswith("glibc.malloc.")}
    libraries = [path for path in preload.replace(":", " ").split() if not _is_allocator(path)]
    if value in _PRELOADED:
        libraries.insert(0, library(value) or f"lib{value}.so")
    merged = kept | _TUNABLES.get(value, {})
    return {
        "GLIBC_TUNABLES": ":".join(f"{name}={text}" for name, text in merged.items()),
        "LD_PRELOAD": ":".join(libraries),
    }


def environment(value: Value) -> dict[str, str]:
    """The variables to change for `value`; whatever else the user set in them is kept."""
    own = {name: os.environ.get(name, "") for name in ("GLIBC_TUNABLES", "LD_PRELOAD")}
    wanted = _variables(str(value), own["GLIBC_TUNABLES"], own["LD_PRELOAD"])
    return {name: text for name, text in wanted.items() if text != own[name]}


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether the process started with this allocator and a trial block of 64 MiB came from it."""
    missing = environment(value)
    if missing:
        names = ", ".join(f"{name} should be {text!r}" for name, text in missing.items())
        return EvidenceResult(False, f"the process's environment differs: {names}")
    source = malloc.malloc_library()
    if source is None:
        return EvidenceResult(None, "/proc/self/maps does not tell which malloc is in use")
    words = f"malloc is {Path(source).name}'s"
    if value in _PRELOADED:
        return EvidenceResult(any(f"lib{name}" in source for name in _PRELOADED[str(value)]), words)
    if _is_allocator(source):
        return EvidenceResult(False, words)
    if value == "system":
        return EvidenceResult(True, f"{words}, with no malloc tunable set")
    return _trial(str(value), words)


def _trial(value: str, words: str) -> EvidenceResult:
    import torch

    heap, huge = malloc.heap(), malloc.huge_page_bytes()
    block = torch.empty(_TRIAL_BYTES, dtype=torch.uint8).fill_(1)
    heap_after, huge_after = malloc.heap(), malloc.huge_page_bytes()
    del block
    results: list[bool | None] = []
    if "tuned" in value:
        kept, where = None, "cannot be traced (no mallinfo2)"
        if heap is not None and heap_after is not None:
            # Memory freed meanwhile by others is subtracted: 1.7 MB of the profiler's was seen.
            kept = heap_after.hblks == heap.hblks and heap_after.uordblks - heap.uordblks >= _TRIAL_BYTES // 2
            where = f"{'came' if kept else 'did not come'} from the heap"
        words += f"; a trial block of {_TRIAL_BYTES >> 20} MiB {where}"
        results.append(kept)
    if "huge-pages" in value:
        if huge is None or huge_after is None:
            results.append(None)
            words += "; /proc/self/smaps_rollup cannot be read"
        else:  # half is enough: a heap need not start at a huge-page boundary, and memory may be fragmented
            results.append(huge_after - huge >= _TRIAL_BYTES // 2)
            words += f"; huge pages grew by {(huge_after - huge) >> 20} MiB of {_TRIAL_BYTES >> 20}"
    return EvidenceResult(False if False in results else None if None in results else True, words)


def _usage(value: Value, _: Scope | None) -> str:
    parts = [f"export {name}={shlex.quote(text)}" for name, text in _variables(str(value), "", "").items() if text]
    return "\n".join(parts) or "unset GLIBC_TUNABLES LD_PRELOAD"


_TUNABLE = Requirement(device_kinds=("cpu",), check=needs_tunables)
_HUGE = Requirement(device_kinds=("cpu",), check=needs_huge_pages)

ALLOCATOR = Toggle(
    name="allocator",
    summary="The CPU memory allocator, selected before the process starts.",
    values={
        "system": "the C library's default",
        "tuned": "glibc keeps large blocks in its heap instead of mapping and unmapping each one",
        "huge-pages": "glibc asks for transparent huge pages",
        "tuned-huge-pages": "tuned and huge-pages together",
        "jemalloc": "the jemalloc library, preloaded",
        "tcmalloc": "the tcmalloc library of gperftools, preloaded",
    },
    stage=Stage.ENVIRONMENT,
    applies=on_cpu,
    requires={
        "tuned": _TUNABLE,
        "huge-pages": _HUGE,
        "tuned-huge-pages": _HUGE,
        "jemalloc": _needs_library("jemalloc"),
        "tcmalloc": _needs_library("tcmalloc"),
    },
    environment=environment,
    # glibc moves its thresholds by what a process has done, so that identical processes differ: docs/measurement.md.
    noise_group={"system": "glibc's own allocator"},
    evidence=evidence,
    usage=_usage,
    source="The GNU C Library manual: Memory Allocation Tunables; mallopt(3); mallinfo(3)",
)
