"""Facts and load of this machine's CPU, read from /proc and /sys. Needs no torch."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from gpubench.hardware.cgroup import cpu_quota_cores, memory_limit_bytes
from gpubench.hardware.monitored import Gatherer
from gpubench.hardware.nvml_call import Unavailable

ROOT = Path("/")
GOVERNOR = "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"

# Flag in /proc/cpuinfo -> our name, those that decide which arithmetic is fast.
FLAGS = {
    **{name: name for name in ("avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16")},
    **{name: name for name in ("avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16")},
    "asimd": "neon",
    "asimdhp": "neon_fp16",
    "bf16": "neon_bf16",
    "i8mm": "neon_i8mm",
    "sve": "sve",
    "sve2": "sve2",
}
# Arithmetic in these types is done in hardware where one of the instruction sets is there (Intel's and Arm's manuals).
BFLOAT16_SETS = frozenset({"avx512_bf16", "amx_bf16", "neon_bf16"})
FLOAT16_SETS = frozenset({"avx512_fp16", "amx_fp16", "neon_fp16"})


class CpuFacts(Struct, frozen=True, kw_only=True):
    """The CPU as this process may use it. What could not be read is None, with its reason in `unavailable`."""

    name: str
    cores: int  # logical ones that this process may run on
    physical_cores: int | None
    total_memory_bytes: int | None
    instruction_sets: list[str]
    last_level_cache_bytes: int | None
    cpu_quota_cores: float | None  # of the control group
    memory_limit_bytes: int | None  # of the control group
    transparent_huge_pages: str | None  # "always", "madvise", "never"
    frequency_governor: str | None
    swap_used_bytes: int | None
    unavailable: dict[str, str] = field(default_factory=dict)


class CpuTimes(Struct, frozen=True):
    """Seconds of CPU time since the start, on the cores that this process may use, by everybody.

    The other cores are left out: what runs on a neighbour's share of a large host does not run on ours.
    """

    busy: float
    steal: float  # taken by the hypervisor
    ours: float  # this process and its ended children
    idle: float = 0.0


def usable_core_ids() -> list[int]:
    """The logical cores that this process may run on."""
    if sys.platform == "linux":
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def read_cpu(root: Path = ROOT) -> CpuFacts:
    """Everything known of the CPU; `root` stands in front of /proc and /sys."""
    readers: dict[str, Callable[[Path], Any]] = {
        "name": lambda root: " ".join(_first_row(root, "model name|Model|cpu model").split()),
        "physical_cores": _physical_cores,
        "total_memory_bytes": lambda root: _meminfo(root)["MemTotal"],
        "instruction_sets": instruction_sets,
        "last_level_cache_bytes": _last_level_cache,
        "cpu_quota_cores": cpu_quota_cores,
        "memory_limit_bytes": memory_limit_bytes,
        "transparent_huge_pages": _huge_pages,
        "frequency_governor": lambda root: (root / GOVERNOR).read_text().strip(),
        "swap_used_bytes": lambda root: _meminfo(root)["SwapTotal"] - _meminfo(root)["SwapFree"],
    }
    got = Gatherer()
    for name, read in readers.items():
        try:
            got.put(name, read(root))
        except (OSError, ValueError, IndexError, KeyError) as error:
            reason = f"cannot be read on this {platform.system()}: {error or type(error).__name__}"
            got.put(name, Unavailable(reason))
    got.values["name"] = got.values["name"] or platform.processor() or platform.machine() or "CPU"
    got.values["instruction_sets"] = got.values["instruction_sets"] or []
    return CpuFacts(cores=len(usable_core_ids()), **got.values, unavailable=got.unavailable)


def available_memory_bytes(root: Path = ROOT) -> int | Unavailable:
    """Bytes that can be had without swapping: the kernel's estimate, and no more than the control group allows."""
    try:
        free = _meminfo(root)["MemAvailable"]
    except (OSError, KeyError) as error:
        return Unavailable(f"/proc/meminfo does not tell the free memory: {error}")
    limit = memory_limit_bytes(root)
    return free if isinstance(limit, Unavailable) else min(free, limit)


def read_times(root: Path = ROOT) -> CpuTimes | Unavailable:
    """CPU time spent so far; two of these make a load."""
    try:
        mine = {f"cpu{core}" for core in usable_core_ids()}
        rows = [line.split() for line in (root / "proc/stat").read_text().splitlines() if line.startswith("cpu")]
        counts = [[int(value) for value in row[1:9]] for row in rows if row[0] in mine]
        user, nice, system, idle, iowait, irq, softirq, steal = (sum(column) for column in zip(*counts, strict=True))
        ticks = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError) as error:
        return Unavailable(f"/proc/stat cannot be read: {error}")
    own = os.times()
    busy = user + nice + system + irq + softirq
    return CpuTimes(busy / ticks, steal / ticks, sum(own[:4]), (idle + iowait) / ticks)


def instruction_sets(root: Path = ROOT) -> list[str]:
    """The instruction sets that matter for speed, as far as the first core has them."""
    flags = set(_first_row(root, "flags|Features").split())
    return [name for flag, name in FLAGS.items() if flag in flags]


def _first_row(root: Path, names: str) -> str:
    match = re.search(rf"^(?:{names})\s*:\s*(.+)$", (root / "proc/cpuinfo").read_text(), re.MULTILINE)
    if not match:
        raise ValueError(f"/proc/cpuinfo has no {names.replace('|', ' or ')}")
    return match[1]


def _physical_cores(root: Path) -> int:
    topology = [root / f"sys/devices/system/cpu/cpu{core}/topology" for core in usable_core_ids()]
    return len({((at / "physical_package_id").read_text(), (at / "core_id").read_text()) for at in topology})


def read_sizes(path: Path) -> dict[str, int]:
    """The rows of a file in /proc such as `VmRSS:  12 kB`, in bytes."""
    rows = re.findall(r"^(\w+):\s+(\d+) kB", path.read_text(), re.MULTILINE)
    return {name: int(kilobytes) * 1024 for name, kilobytes in rows}


def _meminfo(root: Path) -> dict[str, int]:
    return read_sizes(root / "proc/meminfo")


def _last_level_cache(root: Path) -> int:
    caches = []
    for index in (root / "sys/devices/system/cpu/cpu0/cache").glob("index*"):
        size = (index / "size").read_text().strip()
        units = {"K": 2**10, "M": 2**20, "G": 2**30}
        caches.append((int((index / "level").read_text()), int(size.rstrip("KMG")) * units.get(size[-1], 1)))
    if not caches:
        raise ValueError("the kernel describes no caches")
    return max(caches)[1]


def _huge_pages(root: Path) -> str:
    text = (root / "sys/kernel/mm/transparent_hugepage/enabled").read_text()
    return text[text.index("[") + 1 : text.index("]")]
