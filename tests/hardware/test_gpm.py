from __future__ import annotations

import threading

import pynvml
import pytest

from gpubench.hardware import nvml_call
from gpubench.hardware.gpm import GpmMeter
from gpubench.hardware.monitored import Activity
from gpubench.hardware.nvml import Nvml, NvmlDevice, Unavailable
from tests.fake_nvml import FUNCTION_NOT_FOUND, NO_PERMISSION, NOT_SUPPORTED, FakeGpu, FakeNvml, fake_nvml

__all__ = ["fake_nvml"]

CARD = "GPU-aaaaaaaa-0000-0000-0000-000000000001"
MIG = "MIG-cccccccc-0000-0000-0000-000000000003"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def found(uuid: str) -> NvmlDevice:
    nvml = Nvml.open()
    assert isinstance(nvml, Nvml)
    device = nvml.device(uuid)
    assert isinstance(device, NvmlDevice)
    return device


@pytest.fixture
def gpu(fake_nvml: FakeNvml) -> FakeGpu:
    return fake_nvml.add(FakeGpu(uuid=CARD))


def meter(clock: Clock) -> GpmMeter:
    opened = GpmMeter.open(found(CARD).card, None, clock)
    assert isinstance(opened, GpmMeter)
    return opened


def test_neighbouring_readings_are_compared(gpu: FakeGpu, fake_nvml: FakeNvml) -> None:
    clock = Clock()
    reader = meter(clock)
    assert reader.read() is None  # one reading says nothing
    for step in range(3):
        clock.now += 0.2
        gpu.activity[pynvml.NVML_GPM_METRIC_SM_UTIL] = 10.0 * step
        assert reader.read() == Activity(clock.now - 0.2, clock.now, 10.0 * step, 45.0, 30.0)
    assert len(fake_nvml.gpm_buffers) == 2
    reader.close()
    reader.close()
    assert fake_nvml.gpm_buffers == {}
    assert isinstance(reader.read(), Unavailable)


def test_readings_that_follow_too_closely_are_left_out(gpu: FakeGpu, fake_nvml: FakeNvml) -> None:
    clock = Clock()
    reader = meter(clock)
    reader.read()
    clock.now += 0.09
    assert reader.read() is None
    assert fake_nvml.gpm_readings == 1
    clock.now += 0.06
    assert reader.read() == Activity(100.0, 100.15, 80.0, 45.0, 30.0)


def test_a_reading_that_fails_leaves_a_longer_interval(gpu: FakeGpu) -> None:
    clock = Clock()
    reader = meter(clock)
    reader.read()
    clock.now += 0.2
    gpu.fails["nvmlGpmSampleGet"] = NO_PERMISSION
    assert reader.read() == Unavailable("this user may not read it (NVML: no permission)", NO_PERMISSION)
    gpu.fails.clear()
    clock.now += 0.2
    later = reader.read()
    assert isinstance(later, Activity) and (later.since, later.until) == (100.0, 100.4)


def test_one_metric_may_be_missing(gpu: FakeGpu) -> None:
    clock = Clock()
    reader = meter(clock)
    gpu.activity_fails[pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL] = NOT_SUPPORTED
    gpu.activity[pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL] = float("nan")
    reader.read()
    clock.now += 0.2
    read = reader.read()
    assert isinstance(read, Activity)
    assert (read.sm_activity_percent, read.tensor_activity_percent, read.dram_activity_percent) == (80.0, None, None)
    assert read.unavailable == {
        "tensor_activity_percent": "this device does not support it (NVML: not supported)",
        "dram_activity_percent": "NVML gave no finite number",
    }


def test_the_comparison_may_fail(gpu: FakeGpu, fake_nvml: FakeNvml) -> None:
    clock = Clock()
    reader = meter(clock)
    fake_nvml.fails["nvmlGpmMetricsGet"] = NOT_SUPPORTED
    reader.read()
    clock.now += 0.2
    assert isinstance(reader.read(), Unavailable)


@pytest.mark.parametrize("function", ["nvmlGpmQueryDeviceSupport", "nvmlGpmSampleAlloc"])
def test_a_driver_without_it(gpu: FakeGpu, fake_nvml: FakeNvml, function: str) -> None:
    fake_nvml.missing = {function}
    none = found(CARD).activity_meter()
    assert none == Unavailable("this driver's NVML has no such function", FUNCTION_NOT_FOUND)


def test_a_card_without_it(gpu: FakeGpu, fake_nvml: FakeNvml) -> None:
    gpu.gpm_supported = False
    none = found(CARD).activity_meter()
    assert isinstance(none, Unavailable) and "Hopper" in none.reason
    assert fake_nvml.gpm_buffers == {}


def test_the_first_buffer_is_given_back_where_there_is_no_second(
    gpu: FakeGpu, fake_nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    give, given = pynvml.nvmlGpmSampleAlloc, []

    def once() -> object:
        if given:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_MEMORY)
        given.append(give())
        return given[0]

    monkeypatch.setattr(pynvml, "nvmlGpmSampleAlloc", once)
    assert isinstance(found(CARD).activity_meter(), Unavailable)
    assert given and fake_nvml.gpm_buffers == {}


def test_a_mig_instance_is_counted_alone(gpu: FakeGpu, fake_nvml: FakeNvml) -> None:
    instance = fake_nvml.add(FakeGpu(uuid=MIG, card=gpu, gpu_instance_id=5))
    instance.activity = dict.fromkeys(gpu.activity, 7.0)
    fake_nvml.add(FakeGpu(uuid=MIG.replace("cc", "dd"), card=gpu, gpu_instance_id=6))
    clock, device = Clock(), found(MIG)
    assert isinstance(device.activity_meter(), GpmMeter)
    reader = GpmMeter.open(device.card, 5, clock)
    assert isinstance(reader, GpmMeter)
    reader.read()
    clock.now += 0.2
    read = reader.read()
    assert isinstance(read, Activity) and read.sm_activity_percent == 7.0
    assert "nvmlGpmSampleGet" not in fake_nvml.calls


def test_a_mig_device_that_shares_its_instance_or_does_not_tell(gpu: FakeGpu, fake_nvml: FakeNvml) -> None:
    instance = fake_nvml.add(FakeGpu(uuid=MIG, card=gpu, slices=(3, 1)))
    shared = found(MIG).activity_meter()
    assert isinstance(shared, Unavailable) and "may share with others" in shared.reason
    instance.slices = (3, 3)
    for function in ("nvmlDeviceGetAttributes_v2", "nvmlDeviceGetGpuInstanceId"):
        instance.fails = {function: NOT_SUPPORTED}
        silent = found(MIG).activity_meter()
        assert isinstance(silent, Unavailable) and "not supported" in silent.reason


@pytest.mark.parametrize("value", [4294967295.0, -1.0])
def test_a_share_that_cannot_be_is_no_reading(gpu: FakeGpu, value: float) -> None:
    clock = Clock()
    reader = meter(clock)
    reader.read()
    clock.now += 1
    gpu.activity[pynvml.NVML_GPM_METRIC_SM_UTIL] = value
    activity = reader.read()
    assert isinstance(activity, Activity)
    assert activity.sm_activity_percent is None and activity.tensor_activity_percent == 45
    assert activity.unavailable == {"sm_activity_percent": f"NVML gave {value:g} %, which cannot be"}


def test_a_buffer_that_a_hanging_call_may_write_into_is_kept(
    gpu: FakeGpu, fake_nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, answers = meter(Clock()), threading.Event()
    monkeypatch.setattr(nvml_call, "LIMIT_S", 0.05)
    monkeypatch.setattr(pynvml, "nvmlGpmSampleGet", lambda *_: answers.wait())
    blocked = reader.read()
    assert isinstance(blocked, Unavailable) and "did not answer nvmlGpmSampleGet" in blocked.reason
    reader.close()
    assert len(fake_nvml.gpm_buffers) == 2
    answers.set()
