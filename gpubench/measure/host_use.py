"""What the host did while samples were taken, read from outside the measured processes at both ends of it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gpubench.hardware.cgroup import cpu_throttled_s
from gpubench.hardware.cpu import ROOT, CpuTimes, read_times
from gpubench.hardware.monitored import Gatherer
from gpubench.hardware.nvml_call import Unavailable, where_known
from gpubench.measure.process_table import Span, parse, read_stats
from gpubench.report.model import HostUse

# More than the kernel's own work on an idle machine, which no process accounts for (seen: below 0.1 core).
UNSEEN_CORES = 0.1


@dataclass(frozen=True)
class HostReading:
    """The host at one moment; `host_use` makes sense of two."""

    at: float  # time.monotonic()
    times: CpuTimes | Unavailable
    stats: Mapping[int, bytes] | Unavailable  # process id -> /proc/[pid]/stat
    switches: Mapping[int, Mapping[int, int] | Unavailable]  # worker -> thread -> times that it lost its core
    swapped_bytes: Mapping[int, int | Unavailable]  # by worker
    ours: frozenset[int]
    throttled_s: float | Unavailable


def read_host(pids: Iterable[int], ours: frozenset[int] = frozenset(), root: Path = ROOT) -> HostReading:
    """Reads the host now; below 10 ms for 500 processes.

    pids: the workers. ours: other processes of this run; it and the workers are known, and what descends from them.
    root: stands in front of /proc and /sys.
    """
    workers = list(pids)
    return HostReading(
        at=time.monotonic(),
        times=read_times(root),
        stats=read_stats(root),
        switches={pid: _switches(root, pid) for pid in workers},
        swapped_bytes={pid: _swapped(root, pid) for pid in workers},
        ours=ours | {os.getpid(), *workers},
        throttled_s=cpu_throttled_s(root),
    )


def host_use(before: HostReading, after: HostReading) -> HostUse:
    """What happened between two readings; a figure that could not be read is None with its reason."""
    seconds = after.at - before.at
    ours = before.ours | after.ours
    span = where_known(lambda old, new: Span(parse(old), parse(new), ours), before.stats, after.stats)
    # By others: all CPU time less that of each of our own processes.
    cores = where_known(
        lambda span, old, new: _rate(new.busy - old.busy - span.our_cpu_s(), seconds), span, before.times, after.times
    )
    faults = where_known(lambda span: _total([span.major_faults(pid) for pid in after.switches]), span)
    steal = where_known(lambda old, new: _rate(new.steal - old.steal, seconds), before.times, after.times)
    idle = where_known(lambda old, new: _rate(new.idle - old.idle, seconds), before.times, after.times)
    throttled = where_known(lambda old, new: max(0.0, new - old), before.throttled_s, after.throttled_s)
    got = Gatherer()
    got.put("other_cores", cores)
    got.put("idle_cores", idle)
    got.put("busiest_other", where_known(lambda span: _busiest(span, cores), span))
    got.put("major_faults", faults)
    got.put("steal_cores", steal)
    # Over the threads that still live: counts of ended threads are lost.
    switches = [where_known(_grown, last, before.switches.get(pid, {})) for pid, last in after.switches.items()]
    got.put("involuntary_switches", _total(switches))
    got.put("swapped_bytes", _total(list(after.swapped_bytes.values())))
    got.put("quota_throttled_s", throttled)
    return HostUse(seconds=max(0.0, seconds), **got.values, unavailable=got.unavailable)


def _rate(spent_s: float, seconds: float) -> float | Unavailable:
    if seconds <= 0:
        return Unavailable("no time passed between the two readings")
    return max(0.0, spent_s) / seconds


def _busiest(span: Span, cores: float | Unavailable) -> str | Unavailable | None:
    busiest = span.busiest_other()
    if busiest is not None:
        return f"pid {busiest.pid} ({busiest.name})"
    if isinstance(cores, float) and cores > UNSEEN_CORES:
        return Unavailable(
            f"what kept {cores:.1f} cores busy cannot be seen from here (another container or user, or it has ended)"
        )
    return None


def _grown(last: Mapping[int, int], first: Mapping[int, int]) -> int:
    return sum(max(0, count - first.get(thread, 0)) for thread, count in last.items())


def _total(values: list[int | Unavailable]) -> int | Unavailable:
    return where_known(lambda *known: sum(known), *values) if values else Unavailable("no worker was watched")


def _switches(root: Path, pid: int) -> dict[int, int] | Unavailable:
    counts: dict[int, int] = {}
    folder = root / f"proc/{pid}/task"
    try:
        for thread in folder.iterdir():
            try:
                count = _row((thread / "status").read_bytes(), b"nonvoluntary_ctxt_switches:")
            except OSError:  # the thread has ended since it was listed
                continue
            if count is None:
                return Unavailable("this kernel does not count involuntary switches")
            counts[int(thread.name)] = count
    except OSError:
        return _gone(root, pid)
    return counts


def _swapped(root: Path, pid: int) -> int | Unavailable:
    try:
        kilobytes = _row((root / f"proc/{pid}/status").read_bytes(), b"VmSwap:")
    except OSError:
        return _gone(root, pid)
    if kilobytes is None:  # a process without memory is a zombie
        return Unavailable(f"process {pid} has ended, or this kernel does not tell swapped memory by process")
    return kilobytes * 1024


def _row(text: bytes, name: bytes) -> int | None:
    start = text.find(name)
    return int(text[start + len(name) :].split(maxsplit=1)[0]) if start >= 0 else None


def _gone(root: Path, pid: int) -> Unavailable:
    there = (root / "proc/stat").is_file()
    return Unavailable(f"process {pid} has ended" if there else "this system has no /proc")
