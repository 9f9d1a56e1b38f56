"""Processes that are stopped are seen, and those that only have to wait are not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gpubench.measure.run_delay import run_delay_s
from gpubench.measure.stops import PERIOD_S, STOPPED_S, StopWatch, Tick, is_stopped, unaccounted_s

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

# Tells for how long it was stopped while it only waited.
WATCHES_ITSELF = """
import os, time
from gpubench.measure.stops import StopWatch
watch = StopWatch([os.getpid()])
watch.start()
began = time.monotonic()
print("ready", flush=True)
time.sleep(0.2)
input()
print(watch.stopped_s(os.getpid(), began, time.monotonic()))
"""


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


@contextmanager
def watching(*pids: int) -> Iterator[StopWatch]:
    watch = StopWatch(pids)
    watch.start()
    try:
        yield watch
    finally:
        watch.stop()


def test_a_stopped_process_is_seen(child: subprocess.Popen[bytes]) -> None:
    with watching(child.pid, os.getpid()) as watch:
        start = time.monotonic()
        child.send_signal(signal.SIGSTOP)
        time.sleep(0.4)
        child.send_signal(signal.SIGCONT)
        end = time.monotonic()
        time.sleep(0.3)
        later = time.monotonic()
        assert watch.stopped_s(child.pid, start, end) >= 0.2
        assert watch.stopped_s(os.getpid(), start, end) == 0
        assert watch.stopped_s(child.pid, later, later + 1) == 0
        assert watch.stopped_s(child.pid, start - 1, start - 0.5) == 0
    assert watch.stopped_s(child.pid, start, end) >= 0.2  # still known afterwards
    assert not is_stopped(child.pid)


def test_a_stop_of_the_process_that_watches_is_seen() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WATCHES_ITSELF], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    process.stdout.readline()
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.2)
    process.send_signal(signal.SIGCONT)
    out, _ = process.communicate("\n")
    assert float(out) >= 1.0


def test_a_busy_machine_is_not_taken_for_a_stop() -> None:
    load = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4 * (os.cpu_count() or 1))]
    stop = threading.Event()
    here = threading.Thread(target=lambda: [sum(range(10_000)) for _ in iter(stop.is_set, True)])
    here.start()  # holds the interpreter's lock too
    try:
        with watching(os.getpid(), *(process.pid for process in load)) as watch:
            start = time.monotonic()
            time.sleep(1.5)
            assert watch.stopped_s(os.getpid(), start, time.monotonic()) == 0
            assert watch.stopped_s(load[0].pid, start, time.monotonic()) == 0
    finally:
        stop.set()
        here.join()
        for process in load:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("later", "seconds"),
    [
        (Tick(at=PERIOD_S, asleep=0.0, accounted=0.0), 0.0),
        (Tick(at=PERIOD_S / 10, asleep=0.0, accounted=0.0), 0.0),  # asked for before its time
        (Tick(at=3.0 + PERIOD_S, asleep=0.0, accounted=3.0), 0.0),  # it ran, or waited for a core
        (Tick(at=3.0 + PERIOD_S, asleep=0.0, accounted=0.0), 3.0),  # stopped
        (Tick(at=PERIOD_S, asleep=0.0, accounted=-9.0), 0.0),  # a thread has ended, and its count with it
        (Tick(at=PERIOD_S, asleep=3600.0, accounted=0.0), 3600.0),  # the machine slept
    ],
)
def test_what_explains_a_late_look(later: Tick, seconds: float) -> None:
    assert unaccounted_s(Tick(0.0, 0.0, 0.0), later) == pytest.approx(seconds)
    assert (seconds > STOPPED_S) == (seconds > 0)


def test_a_process_that_has_ended_is_not_stopped() -> None:
    assert not is_stopped(2**22 + 1)


def test_waiting_for_a_core_is_counted() -> None:
    if not run_delay_s():
        pytest.skip("this kernel does not tell")
    core = {min(os.sched_getaffinity(0))}
    load = subprocess.Popen(
        [sys.executable, "-c", "while True: pass"], preexec_fn=lambda: os.sched_setaffinity(0, core)
    )
    try:
        code = "import time; end = time.monotonic() + 0.5\nfrom gpubench.measure.run_delay import run_delay_s\n"
        code += "while time.monotonic() < end: pass\nprint(run_delay_s())"
        ran = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            preexec_fn=lambda: os.sched_setaffinity(0, core),
        )  # fmt: skip
    finally:
        load.kill()
        load.wait()
    assert float(ran.stdout) > 0.1
