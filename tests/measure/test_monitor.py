from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpubench.hardware.monitored import GpuSample
from gpubench.hardware.nvml import NvmlDevice, Unavailable
from gpubench.measure import monitor as module
from gpubench.measure.monitor import Monitor
from gpubench.measure.process_usage import Usage, read_usage
from gpubench.measure.readings import GPU_FIELDS
from tests.fake_nvml import FUNCTIONS, NOT_SUPPORTED, FakeGpu, FakeNvml, device, fake_nvml

__all__ = ["device", "fake_nvml"]

BUSY = "import time\nprint('ready', flush=True)\nend = time.time() + 30\nwhile time.time() < end: pass"
BUSY_THREADS = (
    "import hashlib, threading, time\ndata = bytes(2**22)\n"
    "def work():\n    while True: hashlib.sha256(data).digest()\n"
    "threading.Thread(target=work, daemon=True).start()\nprint('ready', flush=True)\ntime.sleep(30)"
)
ASLEEP = "import time\nprint('ready', flush=True)\ntime.sleep(30)"
HUNDRED_MIB = "import time\nblock = b'x' * (100 * 2**20)\nprint('ready', flush=True)\ntime.sleep(30)"


class Children:
    def __init__(self) -> None:
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, code: str) -> subprocess.Popen[bytes]:
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        self.running.append(child)
        assert child.stdout and child.stdout.readline() == b"ready\n"
        return child


@pytest.fixture
def children() -> Iterator[Children]:
    made = Children()
    yield made
    for child in made.running:
        child.kill()
        child.wait()
        if child.stdout:
            child.stdout.close()


@pytest.fixture
def gpu(fake_nvml: FakeNvml) -> FakeGpu:
    return fake_nvml.add(FakeGpu(processes=[(os.getpid(), 300 * 2**20)]))


def watch(pid: int, seconds: float = 0.6) -> module.Utilization:
    with Monitor(pid) as monitor:
        start = time.monotonic()
        time.sleep(seconds)
        return monitor.window(start, time.monotonic())


def cpu_seconds(pid: int) -> float:
    """What that process has used of the cores so far, by the clock of its own in the system."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("code", [BUSY, BUSY_THREADS])
def test_a_busy_process(children: Children, code: str) -> None:
    pid = children.start(code).pid
    before, begun = cpu_seconds(pid), time.monotonic()
    cpu = watch(pid).process_cpu_percent
    # What the system says that it got, which on a busy machine is less than a core.
    got = 100 * (cpu_seconds(pid) - before) / (time.monotonic() - begun)
    assert got > 5
    assert cpu is not None and cpu.mean == pytest.approx(got, rel=0.25)
    assert cpu.min <= cpu.mean <= cpu.max


def test_a_sleeping_process(children: Children) -> None:
    cpu = watch(children.start(ASLEEP).pid).process_cpu_percent
    assert cpu is not None and cpu.mean < 20


def test_resident_memory(children: Children) -> None:
    small = watch(children.start(ASLEEP).pid, 0.2).process_resident_bytes
    large = watch(children.start(HUNDRED_MIB).pid, 0.2).process_resident_bytes
    assert small is not None and large is not None
    assert 80 * 2**20 < large.mean - small.mean < 120 * 2**20


def test_a_process_that_ends_is_no_error(children: Children) -> None:
    child = children.start(ASLEEP)
    with Monitor(child.pid) as monitor:
        start = time.monotonic()
        time.sleep(0.2)
        child.kill()
        for reap in (False, True):  # a zombie first, then gone
            if reap:
                child.wait()
            time.sleep(0.2)
            middle = monitor.window(start, time.monotonic())
            assert middle.process_cpu_percent is not None and middle.process_resident_bytes is not None
            assert middle.process_resident_bytes.min > 2**20
            after = monitor.window(time.monotonic(), time.monotonic() + 0.1)
            assert after.process_cpu_percent is None
            assert after.unavailable["process_cpu_percent"] == f"process {child.pid} has ended"


def test_a_process_that_never_was() -> None:
    assert read_usage(2**22 + 1) == Unavailable(f"process {2**22 + 1} has ended")


def test_another_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert read_usage(os.getpid()) == Unavailable("another process's CPU time and memory are not read on darwin")


def test_readings_come_at_the_rate_asked_for() -> None:
    counts = {}
    for hz in (5.0, 40.0):
        with Monitor(os.getpid(), hz=hz) as monitor:
            start = time.monotonic()
            time.sleep(1.0)
            resident = monitor.window(start, time.monotonic()).process_resident_bytes
            assert resident is not None
            counts[hz] = resident.count
    assert 3 <= counts[5.0] <= 7
    assert 15 <= counts[40.0] <= 42


def test_a_gpu_is_read_through_the_binding(device: NvmlDevice, gpu: FakeGpu) -> None:
    with Monitor(os.getpid(), device) as monitor:
        start = time.monotonic()
        time.sleep(0.3)
        gpu.temperature, gpu.reasons, gpu.energy_millijoules = 91, 0x60, 1_000_500
        time.sleep(0.3)
        found = monitor.window(start, time.monotonic())
    assert found.temperature_celsius is not None
    assert (found.temperature_celsius.min, found.temperature_celsius.max) == (64, 91)
    assert found.throttle_reasons == ["sw_thermal_slowdown", "hw_thermal_slowdown"]
    assert found.energy_joules == pytest.approx(0.5)
    assert found.memory_used_bytes is not None and found.memory_used_bytes.mean == 3 * 2**30
    assert found.other_processes == []
    assert found.gpu_utilization_percent is None
    assert "shorter than 2 s" in found.unavailable["gpu_utilization_percent"]
    assert found.process_cpu_percent is not None


def test_other_processes_and_ours(device: NvmlDevice, gpu: FakeGpu) -> None:
    gpu.processes += [(7, None), (8, None)]
    with Monitor(os.getpid(), device, ours=frozenset({8})) as monitor:
        start = time.monotonic()
        found = monitor.window(start, start + 0.01)
    assert found.other_processes == ["pid 7"]


def test_what_our_processes_start_is_no_stranger(device: NvmlDevice, gpu: FakeGpu) -> None:
    """Such as the processes that torch.compile compiles in."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        gpu.processes += [(os.getpid(), None), (child.pid, None), (os.getppid(), None)]
        with Monitor(os.getpid(), device) as monitor:
            start = time.monotonic()
            found = monitor.window(start, start + 0.01)
        child.kill()
    assert found.other_processes == [f"pid {os.getppid()}"]


def test_a_reading_that_hangs_holds_nobody_up(device: NvmlDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_LIMIT_S", 0.1)
    monkeypatch.setattr(module, "STOP_LIMIT_S", 0.1)
    sample, answers, ended = device.sample, threading.Event(), threading.Event()

    def hangs() -> GpuSample:
        answers.wait(20)
        ended.set()
        return sample()

    with Monitor(os.getpid(), device) as monitor:
        start = time.monotonic()
        monkeypatch.setattr(device, "sample", hangs)
        found = monitor.window(start, time.monotonic() + 0.1)
    assert not ended.is_set()  # neither the window nor the end of watching has waited for it
    assert "no reading fell into the window" in found.unavailable["temperature_celsius"]
    answers.set()


def test_an_error_of_the_thread_is_reported(device: NvmlDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("a fault nobody expected")

    with Monitor(os.getpid(), device) as monitor:
        start = time.monotonic()
        monkeypatch.setattr(device, "sample", broken)
        time.sleep(0.2)
        found = monitor.window(start, time.monotonic())
    assert set(found.unavailable.values()) == {"the monitor stopped: RuntimeError: a fault nobody expected"}
    assert found.process_cpu_percent is None and found.temperature_celsius is None


def test_the_end_of_a_window_lies_between_readings(device: NvmlDevice, gpu: FakeGpu) -> None:
    with Monitor(os.getpid(), device, hz=0.5) as monitor:
        start = time.monotonic()
        time.sleep(0.1)
        gpu.energy_millijoules += 2_000
        found = monitor.window(start, time.monotonic())  # the second regular reading is far away
    assert found.energy_joules is not None and 0 < found.energy_joules <= 2
    assert found.process_cpu_percent is not None


def test_activity_between_readings(device: NvmlDevice, gpu: FakeGpu, fake_nvml: FakeNvml) -> None:
    with Monitor(os.getpid(), device, hz=50) as monitor:
        start = time.monotonic()
        time.sleep(0.9)
        found = monitor.window(start, time.monotonic())
        short = monitor.window(start, start + 0.05)
        assert len(fake_nvml.gpm_buffers) == 2
    assert found.sm_activity_percent is not None and found.tensor_activity_percent is not None
    assert found.sm_activity_percent.mean == pytest.approx(80)
    assert 2 <= found.sm_activity_percent.count <= 4
    assert fake_nvml.gpm_readings <= 6  # every 0.2 s, and not as often as the counters would allow
    assert found.tensor_activity_percent.mean == pytest.approx(45)
    assert found.dram_activity_percent is not None and found.dram_activity_percent.mean == pytest.approx(30)
    assert short.sm_activity_percent is None and "0.05 s" in short.unavailable["sm_activity_percent"]
    assert fake_nvml.gpm_buffers == {}  # given back


def test_activity_that_the_device_does_not_have(device: NvmlDevice, gpu: FakeGpu, fake_nvml: FakeNvml) -> None:
    gpu.gpm_supported = False
    with Monitor(os.getpid(), device) as monitor:
        start = time.monotonic()
        time.sleep(0.1)
        found = monitor.window(start, time.monotonic())
    assert found.sm_activity_percent is None and "Hopper" in found.unavailable["sm_activity_percent"]
    assert found.temperature_celsius is not None
    assert fake_nvml.calls.count("nvmlGpmQueryDeviceSupport") == 1  # asked once, not at every reading


def test_a_monitor_that_fails_at_once_gives_its_buffers_back(
    device: NvmlDevice, fake_nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "sample", lambda: 1 / 0)
    with Monitor(os.getpid(), device):
        assert len(fake_nvml.gpm_buffers) == 2
    assert fake_nvml.gpm_buffers == {}


def test_every_call_unsupported(device: NvmlDevice, fake_nvml: FakeNvml) -> None:
    fake_nvml.fails = dict.fromkeys(FUNCTIONS, NOT_SUPPORTED)
    with Monitor(os.getpid(), device) as monitor:
        start = time.monotonic()
        time.sleep(0.25)
        found = monitor.window(start, time.monotonic())
        slow, now = monitor.slowdowns(start, time.monotonic()), monitor.slowdowns_now()
        memory = monitor.device_process_memory_bytes()
    assert all(getattr(found, name) is None for name in GPU_FIELDS)
    assert set(found.unavailable) == set(GPU_FIELDS)
    assert set(found.unavailable.values()) == {"this device does not support it (NVML: not supported)"}
    assert found.process_cpu_percent is not None
    assert isinstance(slow, Unavailable) and isinstance(now, Unavailable) and isinstance(memory, Unavailable)


def test_slowdowns_are_named_and_counted(device: NvmlDevice, gpu: FakeGpu) -> None:
    gpu.reasons = 0x4 | 0x1  # the power cap and idling are no faults
    with Monitor(os.getpid(), device, hz=50) as monitor:
        start = time.monotonic()
        time.sleep(0.1)
        cool = time.monotonic()
        assert monitor.slowdowns(start, cool) == []
        assert monitor.slowdowns_now() == []
        gpu.reasons = 0x4 | 0x8 | 0x40
        assert monitor.slowdowns_now() == ["hw_slowdown", "hw_thermal_slowdown"]
        time.sleep(0.1)
        found = monitor.slowdowns(start, time.monotonic())
        gpu.reasons = 0
        assert monitor.slowdowns_now() == []
    assert not isinstance(found, Unavailable)
    assert [entry.split(" ")[0] for entry in found] == ["hw_slowdown", "hw_thermal_slowdown"]
    hot, _, total = found[0].partition("(")[2].removesuffix(" readings)").partition(" of ")
    assert 1 <= int(hot) < int(total)


def test_a_window_between_two_readings_still_shows_a_slowdown(device: NvmlDevice, gpu: FakeGpu) -> None:
    gpu.reasons = 0x20
    with Monitor(os.getpid(), device, hz=0.5) as monitor:
        start = time.monotonic()
        time.sleep(0.02)
        found = monitor.slowdowns(start, time.monotonic())
    assert found == ["sw_thermal_slowdown (2 of 2 readings)"]


def test_slowdowns_without_a_device_or_after_an_error(device: NvmlDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    for absent in (None, Unavailable("the NVIDIA driver is not loaded")):
        monitor = Monitor(os.getpid(), absent)
        assert isinstance(monitor.slowdowns(0, 1), Unavailable) and isinstance(monitor.slowdowns_now(), Unavailable)
    monkeypatch.setattr(device, "sample", lambda: 1 / 0)
    with Monitor(os.getpid(), device) as monitor:
        found = monitor.slowdowns(0, time.monotonic())
    assert found == Unavailable("the monitor stopped: ZeroDivisionError: division by zero")


def test_an_error_of_the_first_reading_is_reported(device: NvmlDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "sample", lambda: 1 / 0)
    start = time.monotonic()
    with Monitor(os.getpid(), device) as monitor:
        found = monitor.window(start, time.monotonic())
    assert set(found.unavailable.values()) == {"the monitor stopped: ZeroDivisionError: division by zero"}


def test_stop_ends_the_thread_and_keeps_the_readings() -> None:
    monitor = Monitor(os.getpid())
    monitor.start()
    monitor.start()  # a second start is none
    start = time.monotonic()
    time.sleep(0.15)
    end = time.monotonic()
    monitor.stop()
    monitor.stop()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("gpubench-monitor")]
    assert monitor.window(start, end).process_cpu_percent is not None


def test_device_memory_of_the_worker(device: NvmlDevice, gpu: FakeGpu) -> None:
    assert Monitor(os.getpid(), device).device_process_memory_bytes() == 300 * 2**20
    assert isinstance(Monitor(1, device).device_process_memory_bytes(), Unavailable)
    nothing = Monitor(os.getpid(), None).device_process_memory_bytes()
    assert nothing == Unavailable("a CPU has no device memory of its own")
    lost = Unavailable("the NVIDIA driver is not loaded")
    assert Monitor(os.getpid(), lost).device_process_memory_bytes() == lost


def test_usage_counts_all_threads_exactly() -> None:
    before = read_usage(os.getpid())
    spent = time.process_time()
    while time.process_time() - spent < 0.05:
        pass
    after = read_usage(os.getpid())
    assert isinstance(before, Usage) and isinstance(after, Usage)
    assert after.cpu_s - before.cpu_s == pytest.approx(time.process_time() - spent, abs=0.02)
