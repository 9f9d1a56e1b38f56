"""All processes that can be seen from here at one moment, from /proc/[pid]/stat (proc(5))."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpubench.hardware.nvml_call import Unavailable

TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


@dataclass(frozen=True)
class ProcessEntry:
    """One process. CPU time is that of all its threads, the ended ones too."""

    pid: int
    name: str  # of its program, at most 15 characters
    parent: int
    group: int
    session: int
    started_ticks: int  # with `pid` it names a process for good, since ids are used again
    cpu_s: float
    reaped_cpu_s: float  # of its ended children
    major_faults: int  # pages that had to be read from disk


def read_stats(root: Path) -> dict[int, bytes] | Unavailable:
    """Process id -> its line, unread: a worker is waiting, so `parse` comes later. About 10 us for each process."""
    folder = os.fspath(root / "proc")
    try:
        names = os.listdir(folder)  # noqa: PTH208  a Path for each costs as much as the read
    except OSError as error:
        return Unavailable(f"the processes cannot be listed: {error}")
    lines: dict[int, bytes] = {}
    for name in names:
        if not name.isdigit():
            continue
        try:
            file = os.open(f"{folder}/{name}/stat", os.O_RDONLY)
        except OSError:  # it has ended since it was listed
            continue
        try:
            lines[int(name)] = os.read(file, 1024)
        except OSError:  # likewise
            continue
        finally:
            os.close(file)
    return lines or Unavailable("/proc lists no processes")


def parse(lines: Mapping[int, bytes]) -> dict[int, ProcessEntry]:
    """The table; a line that is not understood is left out."""
    table: dict[int, ProcessEntry] = {}
    for pid, line in lines.items():
        # The name stands in brackets and may hold brackets and blanks itself.
        start, end = line.find(b"("), line.rfind(b")")
        fields = line[end + 2 :].split()
        if start < 0 or end < start or len(fields) < 20:
            continue
        name = line[start + 1 : end].decode(errors="replace")
        numbers = [int(field) for field in fields[1:20]]  # fields 4 to 22 of proc(5)
        table[pid] = ProcessEntry(
            pid=pid,
            name="".join(letter if letter.isprintable() else "?" for letter in name),
            parent=numbers[0],
            group=numbers[1],
            session=numbers[2],
            started_ticks=numbers[18],
            cpu_s=(numbers[10] + numbers[11]) / TICKS_PER_S,
            reaped_cpu_s=(numbers[12] + numbers[13]) / TICKS_PER_S,
            major_faults=numbers[8],
        )
    return table


def family(table: Mapping[int, ProcessEntry], ours: frozenset[int]) -> frozenset[int]:
    """The ids of `ours`, of what descends from them, and of what is left in a session or group that they lead.

    The session that the tool was started in is not ours: it holds everything else that its terminal started.
    """
    members = set(ours)
    grown = True
    while grown:
        more = {
            entry.pid
            for entry in table.values()
            if entry.pid not in members and not members.isdisjoint((entry.parent, entry.group, entry.session))
        }
        members |= more
        grown = bool(more)
    return frozenset(members)


@dataclass(frozen=True)
class Span:
    """The processes at two moments, and which of them are ours."""

    old: Mapping[int, ProcessEntry]
    new: Mapping[int, ProcessEntry]
    ours: frozenset[int]

    def _before(self, pid: int) -> ProcessEntry | None:
        """Process `pid` of the later table in the earlier one; None where it started in between."""
        first, last = self.old.get(pid), self.new.get(pid)
        return first if first and last and first.started_ticks == last.started_ticks else None

    def our_cpu_s(self) -> float:
        """CPU seconds of our processes, those that ended in between as far as one of ours waited for them."""
        was, living = family(self.old, self.ours), family(self.new, self.ours)
        spent = reaped = 0.0
        for pid in living & self.new.keys():
            entry, first = self.new[pid], self._before(pid)
            spent += entry.cpu_s - (first.cpu_s if first else 0.0)
            reaped += entry.reaped_cpu_s - (first.reaped_cpu_s if first else 0.0)
        # Who waits for a child gets all its time at once; what it had used before is not of these seconds.
        gone = [self.old[pid] for pid in was & self.old.keys() if self._before(pid) is None]
        earlier = sum(entry.cpu_s + entry.reaped_cpu_s for entry in gone if entry.parent in self.new)
        return spent + max(0.0, reaped - earlier)

    def busiest_other(self) -> ProcessEntry | None:
        """The process, not ours, that used most CPU time; None where none used any."""
        ours = family(self.old, self.ours) | family(self.new, self.ours)
        used: dict[int, float] = {}
        for pid in self.new.keys() - ours:
            first = self._before(pid)
            used[pid] = self.new[pid].cpu_s - (first.cpu_s if first else 0.0)
        busiest = max(used, key=lambda pid: used[pid], default=None)
        return self.new[busiest] if busiest is not None and used[busiest] > 0 else None

    def major_faults(self, pid: int) -> int | Unavailable:
        """Pages of process `pid` that had to be read from disk."""
        if pid not in self.new:
            return Unavailable(f"process {pid} has ended")
        first = self._before(pid)
        return self.new[pid].major_faults - (first.major_faults if first else 0)
