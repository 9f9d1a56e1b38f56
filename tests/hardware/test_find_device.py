from __future__ import annotations

import os
import sys
import time
from types import SimpleNamespace

import pynvml
import pytest

from gpubench.hardware import nvml_call
from gpubench.hardware.amd import AmdDevice, AmdSmi
from gpubench.hardware.find_device import find_device
from gpubench.hardware.nvml import NvmlDevice, Unavailable
from gpubench.measure.device_free import busy_before
from gpubench.measure.monitor import Monitor
from gpubench.measure.readings import GPU_FIELDS
from tests.fake_nvml import NO_PERMISSION, FakeGpu, FakeNvml, fake_nvml
from tests.hardware.fake_amdsmi import FakeAmd, install

__all__ = ["fake_nvml"]

A = "GPU-aaaaaaaa-0000-0000-0000-000000000001"
B = "GPU-bbbbbbbb-0000-0000-0000-000000000002"


def test_a_cpu_has_none() -> None:
    assert find_device("cpu").device is None


def test_by_uuid_before_the_number(fake_nvml: FakeNvml) -> None:
    fake_nvml.add(FakeGpu(uuid=A))
    fake_nvml.add(FakeGpu(uuid=B))
    found = find_device("cuda", B.removeprefix("GPU-"), 0, {})
    assert isinstance(found.device, NvmlDevice) and found.device.uuid == B
    found.close()
    assert fake_nvml.calls[-1] == "nvmlShutdown"
    for uuid in (None, "ffff"):
        counted = find_device("cuda", uuid, 0, {"CUDA_VISIBLE_DEVICES": "1"})
        assert isinstance(counted.device, NvmlDevice) and counted.device.uuid == B


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED])
def test_an_amd_gpu_where_there_is_no_nvidia_driver(
    fake_nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    fake_nvml.fails["nvmlInitWithFlags"] = code
    module = install(monkeypatch, FakeAmd())
    found = find_device("cuda")
    assert isinstance(found.device, AmdDevice)
    found.close()
    assert not module.is_open


def test_neither(fake_nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "amdsmi", None)
    fake_nvml.fails["nvmlInitWithFlags"] = pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    assert find_device("cuda").device == Unavailable(
        "the NVIDIA driver is not loaded; AMD SMI's Python package (amdsmi) is not installed"
    )


def test_an_nvidia_driver_that_refuses_is_not_taken_for_an_amd_one(
    fake_nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, FakeAmd())
    fake_nvml.fails["nvmlInitWithFlags"] = NO_PERMISSION
    found = find_device("cuda")
    assert found.device == Unavailable("this user may not read it (NVML: no permission)", NO_PERMISSION)
    found.close()


def test_an_apple_gpu_tells_nothing_and_says_why() -> None:
    device = find_device("mps").device
    assert isinstance(device, Unavailable)
    with Monitor(os.getpid(), device) as monitor:
        start = time.monotonic()
        time.sleep(0.1)
        read = monitor.window(start, time.monotonic())
        assert isinstance(monitor.slowdowns(start, time.monotonic()), Unavailable)
        assert isinstance(monitor.slowdowns_now(), Unavailable)
        assert isinstance(monitor.device_process_memory_bytes(), Unavailable)
    assert all(getattr(read, name) is None for name in GPU_FIELDS)
    assert set(read.unavailable) == set(GPU_FIELDS)
    assert all("Metal" in reason for reason in read.unavailable.values())
    assert read.process_cpu_percent is not None
    assert busy_before(device) == device


@pytest.mark.parametrize("smi", [Unavailable("amdsmi is not installed"), None])
def test_a_foreign_pynvml_does_not_hide_an_amd_gpu(monkeypatch: pytest.MonkeyPatch, smi: Unavailable | None) -> None:
    foreign = Unavailable("the package pynvml 8.0.4", nvml_call.FOREIGN)
    card = Unavailable("the AMD card")
    opened = smi or SimpleNamespace(device=lambda uuid: card, close=lambda: None)
    monkeypatch.setattr(nvml_call, "binding", lambda: foreign)
    monkeypatch.setattr(AmdSmi, "open", lambda: opened)
    assert find_device("cuda").device == (foreign if smi else card)
