from __future__ import annotations

import dataclasses

import pytest

from gpubench.hardware.monitored import Process, decode_reasons, memory_of, other_processes
from gpubench.hardware.nvml import NvmlDevice, Unavailable
from tests.fake_nvml import DEVICE_FUNCTIONS, FUNCTION_NOT_FOUND, NOT_SUPPORTED, FakeGpu, FakeNvml, device, fake_nvml

__all__ = ["device", "fake_nvml"]

MONITORED = {
    "gpu_utilization_percent",
    "memory_utilization_percent",
    "memory_used_bytes",
    "power_watts",
    "energy_joules",
    "temperature_celsius",
    "sm_clock_mhz",
    "memory_clock_mhz",
    "throttle_reasons",
}


@pytest.fixture
def gpu(fake_nvml: FakeNvml) -> FakeGpu:
    return fake_nvml.add(FakeGpu())


def test_all_readings_and_their_units(device: NvmlDevice, gpu: FakeGpu) -> None:
    gpu.reasons = 0x24
    sample = device.sample()
    assert sample.unavailable == {}
    assert sample.gpu_utilization_percent == 97
    assert sample.memory_utilization_percent == 41
    assert sample.memory_used_bytes == 3 * 2**30
    assert sample.power_watts == 212.5
    assert sample.energy_millijoules == 1_000_000
    assert sample.temperature_celsius == 64
    assert (sample.sm_clock_mhz, sample.memory_clock_mhz) == (2452, 14001)
    assert sample.throttle_reasons == ["sw_power_cap", "sw_thermal_slowdown"]


@pytest.mark.parametrize("code", [NOT_SUPPORTED, FUNCTION_NOT_FOUND])
def test_every_call_unsupported(device: NvmlDevice, gpu: FakeGpu, code: int) -> None:
    gpu.fails = dict.fromkeys(DEVICE_FUNCTIONS, code)
    sample = device.sample()
    values = {name: value for name, value in dataclasses.asdict(sample).items() if name != "unavailable"}
    assert set(values.values()) == {None}
    assert set(sample.unavailable) == MONITORED
    assert len(set(sample.unavailable.values())) == 1 and all(sample.unavailable.values())
    assert sample.throttle_reasons is None
    assert isinstance(device.processes(), Unavailable)
    assert isinstance(memory_of(device.processes(), 1), Unavailable)
    assert isinstance(device.activity_meter(), Unavailable)
    state = device.state()
    assert state.power_limit_watts is None and "power_limit_watts" in state.unavailable


def test_a_driver_without_any_of_the_functions(device: NvmlDevice, fake_nvml: FakeNvml) -> None:
    fake_nvml.missing = set(DEVICE_FUNCTIONS)
    sample = device.sample()
    assert set(sample.unavailable) == MONITORED
    assert set(sample.unavailable.values()) == {"this driver's NVML has no such function"}
    assert isinstance(device.processes(), Unavailable)


def test_one_missing_reading_leaves_the_others(device: NvmlDevice, gpu: FakeGpu) -> None:
    gpu.fails["nvmlDeviceGetPowerUsage"] = NOT_SUPPORTED
    sample = device.sample()
    assert sample.power_watts is None
    assert sample.unavailable == {"power_watts": "this device does not support it (NVML: not supported)"}
    assert sample.temperature_celsius == 64


def test_numbers_that_cannot_be_are_no_readings(device: NvmlDevice, gpu: FakeGpu) -> None:
    """Drivers fill in -1 where they know nothing."""
    for name in (
        "gpu_utilization",
        "memory_utilization",
        "power_milliwatts",
        "temperature",
        "sm_clock",
        "memory_clock",
    ):
        setattr(gpu, name, 2**32 - 1)
    gpu.power_limit_milliwatts = gpu.default_power_limit_milliwatts = 2**32 - 1
    gpu.memory_used = gpu.memory_total = gpu.energy_millijoules = gpu.reasons = 2**64 - 1
    sample, state = device.sample(), device.state()
    assert set(sample.unavailable) == MONITORED
    assert all("which cannot be" in reason for reason in sample.unavailable.values())
    assert sample.unavailable["temperature_celsius"] == "NVML gave 4294967295, which cannot be"
    assert all(value is None for name, value in dataclasses.asdict(sample).items() if name != "unavailable")
    assert set(state.unavailable) == {"total_memory_bytes", "power_limit_watts", "default_power_limit_watts"}
    gpu.memory_total = 0
    assert device.total_memory_bytes() == Unavailable("NVML gave 0 bytes, which cannot be")


@pytest.mark.parametrize("pid", [0, 2**32 - 1])
def test_a_process_id_that_cannot_be_accuses_nobody(device: NvmlDevice, gpu: FakeGpu, pid: int) -> None:
    gpu.processes = [(7, 2**20), (pid, 2**20)]
    assert device.processes() == Unavailable(f"NVML lists a process with the id {pid}, which no process has")
    gpu.processes = [(7, 2**62)]
    assert device.processes() == [Process(7, None)]


@pytest.mark.parametrize("absent", ["nvmlDeviceGetCurrentClocksEventReasons", None])
def test_older_name_of_the_throttle_reasons(
    device: NvmlDevice, gpu: FakeGpu, fake_nvml: FakeNvml, absent: str | None
) -> None:
    fake_nvml.missing = {absent} if absent else set()
    gpu.reasons = 0x40
    assert device.sample().throttle_reasons == ["hw_thermal_slowdown"]


@pytest.mark.parametrize(
    ("bits", "names"),
    [
        (0x0, []),
        (0x1, ["gpu_idle"]),
        (0x88, ["hw_slowdown", "hw_power_brake"]),
        (0x112, ["applications_clocks_setting", "sync_boost", "display_clock_setting"]),
        (0x600, ["board_limit", "reliability"]),
        (0x1004, ["sw_power_cap", "unknown_0x1000"]),
    ],
)
def test_throttle_names(bits: int, names: list[str]) -> None:
    assert decode_reasons(bits) == names


def test_state(device: NvmlDevice, gpu: FakeGpu) -> None:
    gpu.power_limit_milliwatts, gpu.ecc = 250_000, True
    state = device.state()
    assert (state.power_limit_watts, state.default_power_limit_watts) == (250, 300)
    assert (state.mig, state.ecc, state.total_memory_bytes) == (False, True, 16 * 2**30)
    gpu.fails["nvmlDeviceGetMigMode"] = NOT_SUPPORTED
    assert device.state().mig is False  # a card that cannot be split is not split
    gpu.fails["nvmlDeviceGetMigMode"] = FUNCTION_NOT_FOUND
    assert device.state().mig is None and "mig" in device.state().unavailable


def test_processes_with_older_function(device: NvmlDevice, gpu: FakeGpu, fake_nvml: FakeNvml) -> None:
    gpu.processes = [(10, 2**20), (11, None)]
    assert device.processes() == [Process(10, 2**20), Process(11, None)]
    fake_nvml.missing = {"nvmlDeviceGetComputeRunningProcesses_v3"}
    assert device.processes() == [Process(10, 2**20), Process(11, None)]


def test_memory_of_one_process(device: NvmlDevice, gpu: FakeGpu) -> None:
    gpu.processes = [(10, 2**20), (11, None)]
    assert memory_of(device.processes(), 10) == 2**20
    silent = memory_of(device.processes(), 11)
    assert silent == Unavailable("the driver does not report memory by process")
    absent = memory_of(device.processes(), 12)
    assert isinstance(absent, Unavailable) and "lists no process 12" in absent.reason and "container" in absent.reason


def test_others_are_told_from_ours() -> None:
    listed = [Process(10, 1), Process(11, 2)]
    assert other_processes(listed, frozenset({10}), we_use_it=True) == [Process(11, 2)]
    assert other_processes(listed, frozenset(), we_use_it=False) == listed
    assert other_processes([], frozenset({10}), we_use_it=False) == []


@pytest.mark.parametrize("listed", [[], [Process(4711, 2**20)]])
def test_in_a_container_nobody_is_accused(listed: list[Process]) -> None:
    unsure = other_processes(listed, frozenset({10}), we_use_it=True)
    assert isinstance(unsure, Unavailable) and "container" in unsure.reason


def test_a_process_names_its_program_but_not_its_path(device: NvmlDevice, gpu: FakeGpu, fake_nvml: FakeNvml) -> None:
    fake_nvml.process_names = {10: "/home/some one/bin/python3 -m train", 11: " "}
    gpu.processes = [(10, 300 * 2**20), (11, None), (12, 0)]
    listed = device.processes()
    assert not isinstance(listed, Unavailable)
    assert [str(process) for process in listed] == ["pid 10 (python3), 300 MiB", "pid 11", "pid 12"]


def test_a_name_is_asked_for_once_while_the_process_lives(
    device: NvmlDevice, gpu: FakeGpu, fake_nvml: FakeNvml
) -> None:
    fake_nvml.process_names, gpu.processes = {10: "miner"}, [(10, None)]
    for _ in range(3):
        assert device.processes() == [Process(10, None, "miner")]
    assert fake_nvml.calls.count("nvmlSystemGetProcessName") == 1
    gpu.processes = []
    device.processes()
    fake_nvml.process_names, gpu.processes = {10: "another"}, [(10, None)]  # its id is used again
    assert device.processes() == [Process(10, None, "another")]


def test_the_throttle_reasons_of_this_moment(device: NvmlDevice, gpu: FakeGpu) -> None:
    gpu.reasons = 0x44
    assert device.sample().throttle_reasons == ["sw_power_cap", "hw_thermal_slowdown"]
    gpu.fails = dict.fromkeys(DEVICE_FUNCTIONS, NOT_SUPPORTED)
    assert device.sample().throttle_reasons is None


def test_the_multi_process_service_is_no_stranger() -> None:
    service, other = Process(3, 2**25, "nvidia-cuda-mps-server"), Process(8, 2**20, "miner")
    assert other_processes([service], frozenset(), we_use_it=False) == []
    assert other_processes([service, Process(7, 1), other], frozenset({7}), we_use_it=True) == [other]
    hidden = other_processes([service], frozenset({7}), we_use_it=True)
    assert isinstance(hidden, Unavailable) and "in the place of the processes that compute through it" in hidden.reason
