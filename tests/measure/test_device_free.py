from __future__ import annotations

import pytest

from gpubench.hardware.nvml import NvmlDevice, Unavailable
from gpubench.measure.device_free import busy_before
from tests.fake_nvml import NOT_SUPPORTED, FakeGpu, FakeNvml, device, fake_nvml

__all__ = ["device", "fake_nvml"]


class Time:
    """A clock that only sleeping moves; `at` runs at the times given."""

    def __init__(self) -> None:
        self.now, self.slept = 50.0, 0
        self.at: dict[int, object] = {}

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += 1
        change = self.at.get(self.slept)
        if callable(change):
            change()


@pytest.fixture
def gpu(fake_nvml: FakeNvml) -> FakeGpu:
    return fake_nvml.add(FakeGpu(gpu_utilization=0))


def test_a_free_device_costs_one_look(device: NvmlDevice, gpu: FakeGpu) -> None:
    gpu.gpu_utilization = 5  # a display
    time = Time()
    assert busy_before(device, sleep=time.sleep, clock=lambda: time.now) == ""
    assert time.slept == 0


def test_a_stranger_is_named(device: NvmlDevice, gpu: FakeGpu, fake_nvml: FakeNvml) -> None:
    gpu.processes, fake_nvml.process_names = [(10, None), (77, 2**30)], {77: "/opt/miner"}
    time = Time()
    found = busy_before(device, 1.0, ours=frozenset({10}), sleep=time.sleep, clock=lambda: time.now)
    assert found == "another process is on the device: pid 77 (miner), 1024 MiB"
    assert time.now == pytest.approx(51.0, abs=0.11)
    gpu.processes = [(10, None)]
    assert busy_before(device, 1.0, ours=frozenset({10}), sleep=time.sleep, clock=lambda: time.now) == ""


def test_a_device_that_stays_busy(device: NvmlDevice, gpu: FakeGpu) -> None:
    gpu.gpu_utilization = 6
    time = Time()
    found = busy_before(device, sleep=time.sleep, clock=lambda: time.now)
    assert found == "its utilization stayed above 5 % for 2 s, at last 6 %"
    assert time.slept == pytest.approx(20, abs=1)


def test_what_the_last_process_left_fades(device: NvmlDevice, gpu: FakeGpu) -> None:
    gpu.gpu_utilization, gpu.processes = 90, [(12, None)]
    time = Time()
    time.at = {3: gpu.processes.clear, 8: lambda: setattr(gpu, "gpu_utilization", 2)}
    assert busy_before(device, sleep=time.sleep, clock=lambda: time.now) == ""
    assert time.slept == 8


def test_what_cannot_be_read_is_not_called_free(device: NvmlDevice, gpu: FakeGpu) -> None:
    time = Time()
    lists = ("nvmlDeviceGetComputeRunningProcesses_v2", "nvmlDeviceGetComputeRunningProcesses_v3")
    gpu.fails = dict.fromkeys(lists, NOT_SUPPORTED)
    unlisted = busy_before(device, sleep=time.sleep, clock=lambda: time.now)
    assert isinstance(unlisted, Unavailable) and "cannot be listed" in unlisted.reason
    gpu.fails = {"nvmlDeviceGetUtilizationRates": NOT_SUPPORTED}
    unrated = busy_before(device, sleep=time.sleep, clock=lambda: time.now)
    assert isinstance(unrated, Unavailable) and "utilization cannot be read" in unrated.reason
    assert time.slept == 0
    gpu.processes = [(77, None)]  # one of the two is enough to tell that it is busy
    assert busy_before(device, 0.3, sleep=time.sleep, clock=lambda: time.now) == (
        "another process is on the device: pid 77"
    )


def test_no_device() -> None:
    lost = Unavailable("the NVIDIA driver is not loaded")
    assert busy_before(lost) is lost
    assert isinstance(busy_before(None), Unavailable)
