from __future__ import annotations

import ctypes

import pynvml
import pytest

from gpubench.hardware.monitored import memory_of
from gpubench.hardware.nvml import Nvml, Unavailable, visible_entries
from tests.fake_nvml import (
    FUNCTION_NOT_FOUND,
    FUNCTIONS,
    NO_PERMISSION,
    NOT_SUPPORTED,
    FakeGpu,
    FakeNvml,
    fake_nvml,
)

__all__ = ["fake_nvml"]

A = "GPU-aaaaaaaa-0000-0000-0000-000000000001"
B = "GPU-bbbbbbbb-0000-0000-0000-000000000002"
C = "GPU-cccccccc-0000-0000-0000-000000000003"
MIG = "MIG-cccccccc-0000-0000-0000-000000000003"


def opened() -> Nvml:
    nvml = Nvml.open()
    assert isinstance(nvml, Nvml)
    return nvml


def reason(value: object) -> str:
    assert isinstance(value, Unavailable), value
    return value.reason


def test_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setattr(pynvml, "CDLL", missing)
    assert ctypes.CDLL is not missing
    assert reason(Nvml.open()) == "no NVIDIA driver is installed (libnvidia-ml.so.1 is missing)"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "the NVIDIA driver is not loaded"),
        (NO_PERMISSION, "this user may not read it (NVML: no permission)"),
        (
            pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
            "the NVIDIA driver in the kernel and its NVML library differ in version: restart after the driver's update",
        ),
        (pynvml.NVML_ERROR_UNKNOWN, "NVML error 999 (Unknown Error)"),
    ],
)
def test_initialization_fails_in_words(fake_nvml: FakeNvml, code: int, expected: str) -> None:
    fake_nvml.fails["nvmlInitWithFlags"] = code
    assert reason(Nvml.open()) == expected


def test_versions(fake_nvml: FakeNvml) -> None:
    nvml = opened()
    assert nvml.driver_version() == "570.86.15"
    assert nvml.cuda_version() == (12, 8)
    fake_nvml.fails["nvmlSystemGetCudaDriverVersion_v2"] = FUNCTION_NOT_FOUND
    assert reason(nvml.cuda_version()) == "this driver's NVML has no such function"
    nvml.close()
    assert fake_nvml.calls[-1] == "nvmlShutdown"


def test_an_old_binding_without_a_function(fake_nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(pynvml, "nvmlSystemGetDriverVersion")
    assert reason(opened().driver_version()) == "the installed nvidia-ml-py has no nvmlSystemGetDriverVersion"


def test_a_device_by_uuid_with_and_without_its_prefix(fake_nvml: FakeNvml) -> None:
    fake_nvml.add(FakeGpu(uuid=A, name="first"))
    fake_nvml.add(FakeGpu(uuid=B, name="second"))
    for uuid in (B, B.removeprefix("GPU-")):
        device = opened().device(uuid)
        assert not isinstance(device, Unavailable)
        assert (device.uuid, device.state().name, device.is_mig_instance) == (B, "second", False)
    assert reason(opened().device("ffff")) == "the device ffff cannot be reached: NVML found no such device"


@pytest.mark.parametrize("uuid", [MIG, MIG.removeprefix("MIG-")])
def test_a_mig_instance_reads_memory_itself_and_sensors_from_its_card(fake_nvml: FakeNvml, uuid: str) -> None:
    card = fake_nvml.add(FakeGpu(uuid=A, mig=True, memory_used=50, temperature=71, sm_clock=1410, reasons=0x4))
    fake_nvml.add(FakeGpu(uuid=MIG, card=card, memory_used=7, temperature=1, processes=[(12, 5)]))
    device = opened().device(uuid)
    assert not isinstance(device, Unavailable) and device.is_mig_instance
    sample = device.sample()
    assert (sample.memory_used_bytes, sample.temperature_celsius, sample.sm_clock_mhz) == (7, 71, 1410)
    assert sample.throttle_reasons == ["sw_power_cap"]
    # The whole card's power or utilization would be other people's too.
    for name in ("gpu_utilization_percent", "memory_utilization_percent", "power_watts", "energy_joules"):
        assert "one MIG instance" in sample.unavailable[name]
    assert sample.power_watts is None and sample.gpu_utilization_percent is None
    assert sample.energy_millijoules is None
    assert memory_of(device.processes(), 12) == 5
    assert device.state().mig is True


def test_a_mig_instance_without_reachable_card(fake_nvml: FakeNvml) -> None:
    card = fake_nvml.add(FakeGpu(uuid=A, mig=True))
    instance = fake_nvml.add(FakeGpu(uuid=MIG, card=card))
    instance.fails["nvmlDeviceGetDeviceHandleFromMigDeviceHandle"] = NO_PERMISSION
    assert reason(opened().device(MIG)).startswith(f"the card of the MIG instance {MIG} cannot be reached")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ["0", "1"]),
        ("", []),
        ("1", ["1"]),
        ("1, 0", ["1", "0"]),
        ("0,7,1", ["0"]),  # CUDA stops at the first invalid one
        ("-1,0", []),
        ("0,,1", ["0"]),
        ("GPU-aa, GPU-bb", ["GPU-aa", "GPU-bb"]),
        ("GPU-aa,MIG-bb", ["GPU-aa"]),  # the first entry decides which kind all have
        ("GPU-aa,1", ["GPU-aa"]),
        ("1,GPU-aa", ["1"]),
        ("MIG-bb,MIG-cc", ["MIG-bb", "MIG-cc"]),
        ("0,0", []),  # one that comes twice hides all
        ("GPU-aa,GPU-aa", []),
        ("1gpu,+0", ["1", "0"]),  # read as C's strtoul does
        ("01,1", []),
        ("nonsense", []),
    ],
)
def test_visible_entries(value: str | None, expected: list[str]) -> None:
    assert visible_entries(value, 2) == expected


def test_cuda_device_by_beginning_of_uuid(fake_nvml: FakeNvml) -> None:
    fake_nvml.add(FakeGpu(uuid=A))
    fake_nvml.add(FakeGpu(uuid=B, name="other"))
    device = opened().cuda_device(0, {"CUDA_VISIBLE_DEVICES": "GPU-bbbb"})
    assert not isinstance(device, Unavailable) and device.uuid == B
    assert reason(opened().cuda_device(0, {"CUDA_VISIBLE_DEVICES": "GPU-"})) == (
        "2 cards have a UUID that begins with GPU-"
    )


def test_cuda_device_behind_an_entry_that_names_no_card(fake_nvml: FakeNvml) -> None:
    fake_nvml.add(FakeGpu(uuid=A))
    fake_nvml.add(FakeGpu(uuid=B))
    nvml = opened()
    assert reason(nvml.cuda_device(0, {"CUDA_VISIBLE_DEVICES": "GPU-ffff"})) == (
        "0 cards have a UUID that begins with GPU-ffff"
    )
    # CUDA stops at the first entry that it does not know, so there is no second device.
    assert "GPU-ffff" in reason(nvml.cuda_device(1, {"CUDA_VISIBLE_DEVICES": f"GPU-ffff,{B}"}))
    second = nvml.cuda_device(1, {"CUDA_VISIBLE_DEVICES": f"{B},{A}"})
    assert not isinstance(second, Unavailable) and second.uuid == A
    assert "leaves 1 of 2" in reason(nvml.cuda_device(1, {"CUDA_VISIBLE_DEVICES": f"{A},2"}))
    assert "leaves 0 of 2" in reason(nvml.cuda_device(0, {"CUDA_VISIBLE_DEVICES": "1,1"}))
    assert "leaves 2 of 2" in reason(nvml.cuda_device(-1, {}))


def test_unlike_cards_named_by_uuid_need_no_order(fake_nvml: FakeNvml) -> None:
    fake_nvml.add(FakeGpu(uuid=A, name="slow"))
    fake_nvml.add(FakeGpu(uuid=B, name="fast"))
    device = opened().cuda_device(0, {"CUDA_VISIBLE_DEVICES": B})
    assert not isinstance(device, Unavailable) and device.uuid == B


def test_a_mig_instance_that_is_not_there(fake_nvml: FakeNvml) -> None:
    fake_nvml.add(FakeGpu(uuid=A, mig=True))
    assert reason(opened().cuda_device(0, {"CUDA_VISIBLE_DEVICES": MIG})) == (
        f"the device {MIG} cannot be reached: NVML found no such device"
    )


def test_cuda_device_by_number_only_where_the_order_is_certain(fake_nvml: FakeNvml) -> None:
    fake_nvml.add(FakeGpu(uuid=A))
    second = fake_nvml.add(FakeGpu(uuid=B))
    device = opened().cuda_device(1, {})
    assert not isinstance(device, Unavailable) and device.uuid == B
    swapped = opened().cuda_device(0, {"CUDA_VISIBLE_DEVICES": "1,0"})
    assert not isinstance(swapped, Unavailable) and swapped.uuid == B
    second.name = "a faster card, which CUDA would count first"
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in reason(opened().cuda_device(1, {}))
    ordered = opened().cuda_device(1, {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"})
    assert not isinstance(ordered, Unavailable) and ordered.uuid == B


def test_cuda_device_that_is_hidden_or_split(fake_nvml: FakeNvml) -> None:
    card = fake_nvml.add(FakeGpu(uuid=A, mig=True))
    fake_nvml.add(FakeGpu(uuid=MIG, card=card))
    assert reason(opened().cuda_device(0, {"CUDA_VISIBLE_DEVICES": ""})) == (
        "CUDA has no device 0: CUDA_VISIBLE_DEVICES leaves 0 of 1"
    )
    assert "name the instance (MIG-...)" in reason(opened().cuda_device(0, {}))
    device = opened().cuda_device(0, {"CUDA_VISIBLE_DEVICES": MIG})
    assert not isinstance(device, Unavailable) and device.uuid == MIG


def test_a_card_that_cannot_be_reached_keeps_its_number(fake_nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    for uuid in (A, B, C):
        fake_nvml.add(FakeGpu(uuid=uuid))
    by_index = FUNCTIONS["nvmlDeviceGetHandleByIndex_v2"]

    def first_is_lost(nvml: FakeNvml, index: ctypes.c_uint, target: object) -> int:
        return pynvml.NVML_ERROR_GPU_IS_LOST if index.value == 0 else by_index(nvml, index, target)

    monkeypatch.setitem(FUNCTIONS, "nvmlDeviceGetHandleByIndex_v2", first_is_lost)
    lost = "card 0 cannot be reached: the GPU is lost: it fell off the bus"
    devices = opened().devices()
    assert not isinstance(devices, Unavailable)
    assert [reason(device) if isinstance(device, Unavailable) else device.uuid for device in devices] == [lost, B, C]
    second = opened().cuda_device(0, {"CUDA_VISIBLE_DEVICES": "1"})
    assert not isinstance(second, Unavailable) and second.uuid == B
    assert reason(opened().cuda_device(0, {})) == lost
    by_uuid = opened().cuda_device(0, {"CUDA_VISIBLE_DEVICES": C})
    assert not isinstance(by_uuid, Unavailable) and by_uuid.uuid == C
    assert lost in reason(opened().cuda_device(0, {"CUDA_VISIBLE_DEVICES": A}))
    fake_nvml.fails["nvmlDeviceGetCount_v2"] = NO_PERMISSION
    assert reason(opened().devices()) == reason(opened().cuda_device(0, {}))


def test_a_card_without_a_uuid_is_read_all_the_same(fake_nvml: FakeNvml) -> None:
    """As on Jetson boards."""
    fake_nvml.add(FakeGpu(uuid=A)).fails["nvmlDeviceGetUUID"] = NOT_SUPPORTED
    device = opened().find(None, 0, {})
    assert not isinstance(device, Unavailable)
    assert (device.uuid, device.sample().temperature_celsius, device.state().uuid) == (None, 64, None)


@pytest.mark.parametrize("count", [2**32 - 1, -1])
def test_a_number_of_cards_that_cannot_be(fake_nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: count)
    assert reason(opened().devices()) == f"NVML gave {count}, which cannot be"


def test_every_call_unsupported(fake_nvml: FakeNvml) -> None:
    fake_nvml.add(FakeGpu(uuid=A))
    nvml = opened()
    fake_nvml.fails = dict.fromkeys(FUNCTIONS, NOT_SUPPORTED)
    for answer in (
        nvml.driver_version(),
        nvml.cuda_version(),
        nvml.devices(),
        nvml.device(A),
        nvml.cuda_device(0, {}),
        Nvml.open(),
    ):
        assert "not supported" in reason(answer)
    nvml.close()
