"""Planted /proc files, so that every figure can be checked by hand; and this machine, to see that they are right."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gpubench.hardware.nvml_call import Unavailable
from gpubench.measure.host_use import HostReading, host_use, read_host
from gpubench.measure.process_table import TICKS_PER_S, Span, family, parse, read_stats
from gpubench.report.model import HostUse

TOOL, SERVER, WORKER, SHELL, STRANGER = os.getpid(), 500_001, 500_002, 500_003, 500_004
FIGURES = set(HostUse.__struct_fields__) - {"seconds", "unavailable"}


def stat(
    pid: int,
    cpu_s: float = 0.0,
    *,
    name: str = "python",
    parent: int = 1,
    group: int | None = None,
    session: int | None = None,
    faults: int = 0,
    reaped_s: float = 0.0,
    started: int = 100,
) -> str:
    group = pid if group is None else group
    session = group if session is None else session
    user, reaped = round(cpu_s * TICKS_PER_S), round(reaped_s * TICKS_PER_S)
    counts = f"0 -1 4194304 50 60 {faults} 70 {user // 2} {user - user // 2} {reaped} 0 20 0 1 0 {started} 1000 20"
    return f"{pid} ({name}) S {parent} {group} {session} {counts}\n"


class Host:
    """A /proc and a /sys in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.busy(0.0)
        self.write("proc/self/cgroup", "0::/\n")
        self.throttled(0.0)
        self.process(TOOL, parent=SHELL)
        self.process(SERVER, parent=TOOL)
        self.worker()

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def busy(self, seconds: float, steal: float = 0.0, idle: float = 0.0) -> None:
        first = min(os.sched_getaffinity(0))
        rows = [f"cpu{core} 0 0 0 5 0 0 0 0 0 0" for core in sorted(os.sched_getaffinity(0)) if core != first]
        spent = [round(each * TICKS_PER_S) for each in (seconds, idle, steal)]
        rows.append(f"cpu{first} {spent[0]} 0 0 {spent[1]} 5 0 0 {spent[2]} 0 0")
        self.write("proc/stat", "\n".join(["cpu 1 1 1 1 1 1 1 1 1 1", *rows]))

    def throttled(self, seconds: float) -> None:
        self.write("sys/fs/cgroup/cpu.stat", f"usage_usec 1\nthrottled_usec {round(seconds * 1e6)}\n")

    def process(self, pid: int, cpu_s: float = 0.0, **facts: object) -> None:
        self.write(f"proc/{pid}/stat", stat(pid, cpu_s, **facts))  # type: ignore[arg-type]

    def worker(self, cpu_s: float = 0.0, faults: int = 0, swap_kb: int = 0, switches: tuple[int, ...] = (3, 4)) -> None:
        self.process(WORKER, cpu_s, parent=SERVER, faults=faults)
        self.write(f"proc/{WORKER}/status", f"Name:\tpython\nVmRSS:\t  99 kB\nVmSwap:\t  {swap_kb} kB\n")
        for number, count in enumerate(switches):
            text = f"voluntary_ctxt_switches:\t900\nnonvoluntary_ctxt_switches:\t{count}\n"
            self.write(f"proc/{WORKER}/task/{WORKER + 10 * number}/status", text)

    def end(self, pid: int) -> None:
        for path in sorted((self.root / f"proc/{pid}").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (self.root / f"proc/{pid}").rmdir()

    def read(self, at: float, pids: tuple[int, ...] = (WORKER,), ours: frozenset[int] = frozenset()) -> HostReading:
        return replace(read_host(pids, ours, self.root), at=at)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_quiet_host(host: Host) -> None:
    before = host.read(10.0)
    host.busy(2.0)
    host.worker(cpu_s=2.0)
    assert host_use(before, host.read(12.0)) == HostUse(
        seconds=2.0,
        steal_cores=0.0,
        other_cores=0.0,
        idle_cores=0.0,
        busiest_other=None,
        involuntary_switches=0,
        major_faults=0,
        swapped_bytes=0,
        quota_throttled_s=0.0,
    )


def test_every_figure(host: Host) -> None:
    host.process(STRANGER, 40.0, name="Web (Content) 1")
    host.process(SHELL, 90.0, name="bash")
    before = host.read(10.0)
    host.busy(4.0, steal=1.0, idle=5.0)
    host.worker(cpu_s=2.5, faults=12, swap_kb=7, switches=(10, 4, 5))
    host.process(STRANGER, 41.4, name="Web (Content) 1")
    host.process(SHELL, 90.1, name="bash")
    host.throttled(0.75)
    found = host_use(before, host.read(12.0))
    assert found.unavailable == {}
    assert found.steal_cores == pytest.approx(0.5)
    assert found.other_cores == pytest.approx(0.75)  # (4.0 - 2.5) / 2
    assert found.idle_cores == pytest.approx(2.5)
    assert found.busiest_other == f"pid {STRANGER} (Web (Content) 1)"
    assert found.involuntary_switches == 7 + 0 + 5  # the third thread is new
    assert (found.major_faults, found.swapped_bytes, found.quota_throttled_s) == (12, 7 * 1024, 0.75)


def test_all_that_is_ours_is_left_out(host: Host) -> None:
    grandchild, orphan, known, terminal = 500_010, 500_011, 500_012, 500_013
    host.process(terminal, session=SHELL, parent=SHELL)  # the same terminal's: not ours
    before = host.read(10.0, ours=frozenset({known}))
    host.busy(5.0)
    host.process(TOOL, 0.5, parent=SHELL, session=SHELL)
    host.process(SERVER, 0.25, parent=TOOL)
    host.process(grandchild, 1.0, parent=WORKER)
    host.process(orphan, 1.0, parent=1, group=orphan, session=WORKER)  # its parent ended
    host.process(known, 1.0)
    host.process(terminal, 0.25, session=SHELL, parent=SHELL, name="bash")
    found = host_use(before, host.read(11.0, ours=frozenset({known})))
    assert found.other_cores == pytest.approx(5.0 - 3.75)
    assert found.busiest_other == f"pid {terminal} (bash)"


def test_a_child_that_was_waited_for_counts_from_the_first_reading_on(host: Host) -> None:
    child = 500_010
    host.process(child, 30.0, parent=WORKER)
    before = host.read(10.0)
    host.busy(2.5)
    host.end(child)
    host.process(WORKER, 0.5, parent=SERVER, reaped_s=31.0)
    assert host_use(before, host.read(11.0)).other_cores == pytest.approx(1.0)  # 2.5 - 0.5 - 1.0


def test_an_id_that_is_used_again_is_another_process(host: Host) -> None:
    host.process(STRANGER, 500.0, name="old")
    before = host.read(10.0)
    host.busy(1.0)
    host.process(STRANGER, 0.75, name="new", started=999)
    found = host_use(before, host.read(11.0))
    assert found.busiest_other == f"pid {STRANGER} (new)"


def test_load_that_no_visible_process_explains(host: Host) -> None:
    before = host.read(10.0)
    host.busy(3.0)
    found = host_use(before, host.read(12.0))
    assert found.busiest_other is None and found.other_cores == 1.5
    assert found.unavailable == {
        "busiest_other": "what kept 1.5 cores busy cannot be seen from here "
        "(another container or user, or it has ended)"
    }


def test_several_workers_add_up(host: Host) -> None:
    host.process(SERVER, parent=TOOL, faults=5)
    host.write(f"proc/{SERVER}/status", "VmSwap: 1 kB\n")
    host.write(f"proc/{SERVER}/task/{SERVER}/status", "nonvoluntary_ctxt_switches: 1\n")
    before = host.read(10.0, (WORKER, SERVER))
    host.worker(faults=2, swap_kb=2, switches=(4, 4))
    host.process(SERVER, parent=TOOL, faults=8)
    host.write(f"proc/{SERVER}/task/{SERVER}/status", "nonvoluntary_ctxt_switches: 3\n")
    found = host_use(before, host.read(11.0, (WORKER, SERVER)))
    assert (found.involuntary_switches, found.major_faults, found.swapped_bytes) == (3, 5, 3 * 1024)


def test_a_worker_that_ends(host: Host) -> None:
    before = host.read(10.0)
    host.end(WORKER)
    found = host_use(before, host.read(11.0))
    for name in ("involuntary_switches", "major_faults", "swapped_bytes"):
        assert getattr(found, name) is None
        assert found.unavailable[name] == f"process {WORKER} has ended"
    assert found.other_cores == 0.0


def test_a_kernel_that_tells_less(host: Host) -> None:
    host.write(f"proc/{WORKER}/status", "Name: python\n")
    host.write(f"proc/{WORKER}/task/{WORKER}/status", "Name: python\n")
    found = host_use(host.read(10.0), host.read(11.0))
    assert "does not tell swapped memory" in found.unavailable["swapped_bytes"]
    assert found.unavailable["involuntary_switches"] == "this kernel does not count involuntary switches"


def test_nothing_readable(tmp_path: Path) -> None:
    found = host_use(read_host([WORKER], root=tmp_path), read_host([WORKER], root=tmp_path))
    assert all(getattr(found, name) is None for name in FIGURES)
    assert set(found.unavailable) == FIGURES and all(found.unavailable.values())


def test_nobody_to_watch_and_no_time(host: Host) -> None:
    found = host_use(host.read(10.0, ()), host.read(10.0, ()))
    assert found.unavailable["swapped_bytes"] == "no worker was watched"
    assert found.unavailable["other_cores"] == found.unavailable["steal_cores"]
    assert "no time passed" in found.unavailable["other_cores"]


def test_a_line_that_is_not_understood_is_left_out() -> None:
    good = stat(7, 1.0, name="a) b (c").encode()
    table = parse({7: good, 8: b"", 9: b"9 (short) S 1 2"})
    assert set(table) == {7} and table[7].name == "a) b (c"
    hostile = parse({7: stat(7, name="tab\there\x1b[2J").encode()})
    assert hostile[7].name == "tab?here?[2J"


def test_family_follows_descent_to_the_end() -> None:
    lines = {pid: stat(pid, parent=pid - 1, group=1, session=1).encode() for pid in range(10, 40)}
    assert family(parse(lines), frozenset({20})) == frozenset(range(20, 40))


def test_the_busiest_is_the_one_with_the_largest_difference() -> None:
    old = parse({7: stat(7, 100.0).encode(), 8: stat(8, 1.0).encode()})
    new = parse({7: stat(7, 100.5).encode(), 8: stat(8, 2.0).encode()})
    busiest = Span(old, new, frozenset()).busiest_other()
    assert busiest is not None and busiest.pid == 8


def test_five_hundred_processes_are_read_at_once(tmp_path: Path) -> None:
    for pid in range(1, 501):
        (tmp_path / f"proc/{pid}").mkdir(parents=True)
        (tmp_path / f"proc/{pid}/stat").write_text(stat(pid, 1.0))
    spent = []
    for _ in range(5):
        started = time.perf_counter()
        lines = read_stats(tmp_path)
        spent.append(time.perf_counter() - started)
    assert not isinstance(lines, Unavailable) and len(lines) == 500
    assert min(spent) < 0.03  # about 5 ms where nothing else runs


BURN = "import time\nprint('ready', flush=True)\nend = time.monotonic() + 20\nwhile time.monotonic() < end: pass"
# A process of nobody's: its parent ends at once, and it leads a session of its own.
STRAY = f"import os\nif os.fork(): os._exit(0)\nos.setsid()\nprint(os.getpid(), flush=True)\n{BURN}"


@pytest.fixture
def stray() -> Iterator[int]:
    child = subprocess.Popen([sys.executable, "-c", STRAY], stdout=subprocess.PIPE, text=True)
    assert child.stdout
    pid = int(child.stdout.readline())
    child.stdout.readline()
    child.wait()
    yield pid
    os.kill(pid, 9)
    child.stdout.close()


def test_this_machine_tells_a_stranger_from_a_worker(stray: int) -> None:
    with subprocess.Popen([sys.executable, "-c", BURN], stdout=subprocess.PIPE) as worker:
        assert worker.stdout and worker.stdout.readline() == b"ready\n"
        before = read_host([worker.pid])
        time.sleep(0.6)
        found = host_use(before, read_host([worker.pid]))
        worker.kill()
    assert found.unavailable == {} or set(found.unavailable) == {"quota_throttled_s"}
    assert found.busiest_other is not None and found.busiest_other != f"pid {worker.pid}"
    assert found.other_cores is not None and found.other_cores > 0.2  # half a core where the worker has the other
    assert found.steal_cores is not None
    assert found.swapped_bytes is not None and found.major_faults is not None
    assert found.involuntary_switches is not None and found.involuntary_switches >= 0
