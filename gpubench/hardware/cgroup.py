"""Limits that a control group (container, batch system) sets on this process, versions 1 and 2."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

from gpubench.hardware.nvml_call import Unavailable, where_known

# Version 1 writes "no limit" as the largest multiple of the page size below 2^63.
UNLIMITED_BYTES = 2**60


def _folders(root: Path, controller: str) -> list[Path]:
    """The group's folder and those above it: the narrowest limit among them holds."""
    lines = (root / "proc/self/cgroup").read_text().splitlines()
    parts = [line.split(":", 2) for line in lines if line.count(":") >= 2]
    # Controller -> path of this process's group; "" is version 2.
    memberships = {name: path for _, names, path in parts for name in names.split(",")}
    mounts = [root / "sys/fs/cgroup" / controller] if controller in memberships else []
    mounts += [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
    folders: list[Path] = []
    for mount in mounts:
        relative = memberships.get(controller if mount.name == controller else "", "/").strip("/")
        path = mount / relative
        # Inside a container the path can be that of the host, which is not mounted here: then only the mount counts.
        folders += [folder for folder in (path, *path.parents) if folder.is_relative_to(mount) and folder.is_dir()]
    return list(dict.fromkeys(folders))


def _readings(
    controller: str, root: Path, read: Callable[[Path], Iterator[float]], missing: str
) -> list[float] | Unavailable:
    """What `read` yields in the folders of this process's groups; `missing`: the reason where that is nothing."""
    try:
        values = [value for folder in _folders(root, controller) for value in read(folder)]
    except (OSError, ValueError) as error:
        return Unavailable(f"the control group cannot be read: {error}")
    return values or Unavailable(missing)


def _narrowest(limits: list[float]) -> float | Unavailable:
    return Unavailable("no limit is set") if min(limits) == math.inf else min(limits)


def cpu_quota_cores(root: Path = Path("/")) -> float | Unavailable:
    """How many cores' worth of time the control group allows, such as 1.5."""
    return where_known(_narrowest, _readings("cpu", root, _quotas, "no control group file gives the CPU quota"))


def _quotas(folder: Path) -> Iterator[float]:
    if (folder / "cpu.max").is_file():
        quota, period = (folder / "cpu.max").read_text().split()
        yield math.inf if quota == "max" else int(quota) / int(period)
    elif (folder / "cpu.cfs_quota_us").is_file():
        microseconds = int((folder / "cpu.cfs_quota_us").read_text())
        period_us = int((folder / "cpu.cfs_period_us").read_text())
        yield math.inf if microseconds <= 0 else microseconds / period_us


def memory_limit_bytes(root: Path = Path("/")) -> int | Unavailable:
    """The most memory that the control group allows, in bytes."""
    limits = _readings("memory", root, _memory_limits, "no control group file gives the memory limit")
    return where_known(int, where_known(_narrowest, limits))


def _memory_limits(folder: Path) -> Iterator[float]:
    for name in ("memory.max", "memory.limit_in_bytes"):
        if (folder / name).is_file():
            text = (folder / name).read_text().strip()
            yield math.inf if text == "max" or int(text) >= UNLIMITED_BYTES else int(text)


def cpu_throttled_s(root: Path = Path("/")) -> float | Unavailable:
    """Seconds so far in which a CPU quota held back this process's control group or one above it."""
    missing = "no control group file tells for how long a quota held it back"
    # Each group counts its own quota only, so they add up.
    return where_known(sum, _readings("cpu", root, _throttled_s, missing))


def _throttled_s(folder: Path) -> Iterator[float]:
    if (folder / "cpu.stat").is_file():
        rows = (line.split() for line in (folder / "cpu.stat").read_text().splitlines())
        counts = {row[0]: int(row[1]) for row in rows if len(row) == 2}
        for name, unit in (("throttled_usec", 1e6), ("throttled_time", 1e9)):  # versions 2 and 1
            if name in counts:
                yield counts[name] / unit
