"""Summaries of made-up readings: the times are chosen, so every number can be checked by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from gpubench.hardware.monitored import Activity, GpuSample, Process
from gpubench.hardware.nvml import Nvml, NvmlDevice, Unavailable
from gpubench.measure.process_usage import Usage
from gpubench.measure.readings import GPU_FIELDS, PROCESS_FIELDS, MonitorSample, summarize
from gpubench.report.model import Reading, Utilization
from tests.fake_nvml import FakeGpu, FakeNvml, fake_nvml

__all__ = ["fake_nvml"]

WORKER = 100
BASE = GpuSample(
    gpu_utilization_percent=90,
    memory_utilization_percent=40,
    memory_used_bytes=1000,
    power_watts=200,
    energy_millijoules=0,
    temperature_celsius=60,
    sm_clock_mhz=2000,
    memory_clock_mhz=9000,
    throttle_bits=0,
)


@pytest.fixture
def device(fake_nvml: FakeNvml) -> NvmlDevice:
    nvml = Nvml.open()
    assert isinstance(nvml, Nvml)
    found = nvml.device(fake_nvml.add(FakeGpu()).uuid)
    assert isinstance(found, NvmlDevice)
    return found


def samples(
    times: list[float],
    gpu: Callable[[float], dict[str, object]] = lambda at: {},
    cpu: Callable[[float], float] = lambda at: at,
    processes: list[Process] | Unavailable | None = None,
) -> list[MonitorSample]:
    return [
        MonitorSample(
            at=at,
            usage=Usage(cpu(at), 5000),
            gpu=dataclasses.replace(BASE, **gpu(at)),  # type: ignore[arg-type]
            processes=processes,
            activity=Activity(at - 0.2, at, 60 + at, 50, 40),
        )
        for at in times
    ]


def summary(
    read: list[MonitorSample],
    start: float,
    end: float,
    device: NvmlDevice | Unavailable | None,
    error: tuple[float, str] | None = None,
) -> Utilization:
    return summarize(read, start, end, pid=WORKER, device=device, ours=frozenset({WORKER}), error=error)


SECONDS = [float(at) for at in range(11)]
OURS = [Process(WORKER, 1)]


def test_a_full_window(device: NvmlDevice) -> None:
    read = samples(SECONDS, lambda at: {"energy_millijoules": int(at * 200_000)}, lambda at: 1.5 * at, OURS)
    found = summary(read, 2.0, 8.0, device)
    assert found.unavailable == {}
    assert found.gpu_utilization_percent == Reading(mean=90, min=90, max=90, count=6)
    assert found.temperature_celsius == Reading(mean=60, min=60, max=60, count=7)
    assert found.process_cpu_percent is not None
    assert found.process_cpu_percent.mean == pytest.approx(150)
    assert found.energy_joules == pytest.approx(1200)
    assert (found.throttle_reasons, found.other_processes) == ([], [])
    assert found.sm_activity_percent == Reading(mean=65.5, min=63, max=68, count=6)  # from 3 s on: 2 s reaches before
    assert found.tensor_activity_percent == Reading(mean=50, min=50, max=50, count=6)
    assert found.dram_activity_percent == Reading(mean=40, min=40, max=40, count=6)


def test_only_the_window_counts(device: NvmlDevice) -> None:
    hot = samples(SECONDS, lambda at: {"temperature_celsius": 50 + at, "throttle_bits": 0x40 if at == 9 else 0x4})
    found = summary(hot, 2.0, 4.0, device)
    assert found.temperature_celsius == Reading(mean=53, min=52, max=54, count=3)
    assert found.throttle_reasons == ["sw_power_cap"]
    later = summary(hot, 5.0, 10.0, device)
    assert later.throttle_reasons == ["sw_power_cap", "hw_thermal_slowdown"]


def test_the_first_second_of_averaged_readings_speaks_of_the_time_before(device: NvmlDevice) -> None:
    read = samples(
        [at / 4 for at in range(41)], lambda at: {"gpu_utilization_percent": 0 if at < 5.9 else 100, "power_watts": at}
    )
    found = summary(read, 5.0, 10.0, device)
    assert found.gpu_utilization_percent is not None
    assert (found.gpu_utilization_percent.min, found.gpu_utilization_percent.count) == (100, 17)
    assert found.power_watts is not None and found.power_watts.min == 6.0


def test_short_windows_have_no_utilization(device: NvmlDevice) -> None:
    found = summary(samples([at / 10 for at in range(60)]), 1.0, 2.9, device)
    for name in ("gpu_utilization_percent", "memory_utilization_percent", "power_watts"):
        assert getattr(found, name) is None
        assert "window of 1.90 s is shorter than 2 s" in found.unavailable[name]
    assert found.temperature_celsius is not None  # read as it is at the moment
    assert "power" in found.unavailable["power_watts"] and "utilization" in found.unavailable["gpu_utilization_percent"]


def test_energy_between_readings_is_interpolated(device: NvmlDevice) -> None:
    read = samples(SECONDS, lambda at: {"energy_millijoules": int(at * 1000)})
    assert summary(read, 2.25, 7.5, device).energy_joules == pytest.approx(5.25)


def test_energy_needs_readings_on_both_sides(device: NvmlDevice) -> None:
    for start, end in ((-1.0, 5.0), (5.0, 11.0)):
        found = summary(samples(SECONDS), start, end, device)
        assert found.energy_joules is None
        assert "both sides of the window" in found.unavailable["energy_joules"]


def test_an_energy_counter_that_goes_back(device: NvmlDevice) -> None:
    # Higher at the end than at the start all the same: only the step in the middle shows it.
    counter = {4.0: 4000, 5.0: 100, 6.0: 9000}
    read = samples(SECONDS, lambda at: {"energy_millijoules": counter.get(at, int(at * 1500))})
    found = summary(read, 2.0, 8.0, device)
    assert found.energy_joules is None and "went back" in found.unavailable["energy_joules"]


def test_an_energy_counter_that_stands_still(device: NvmlDevice) -> None:
    found = summary(samples(SECONDS), 2.0, 8.0, device)
    assert found.energy_joules is None
    assert found.unavailable["energy_joules"] == "the energy counter did not move within the window of 6.00 s"


def test_energy_per_item_is_left_to_the_runner(device: NvmlDevice) -> None:
    found = summary(samples(SECONDS), 2.0, 8.0, device)
    assert found.energy_per_item_joules is None and "energy_per_item_joules" not in found.unavailable


def test_an_unsupported_reading_keeps_its_own_reason(device: NvmlDevice) -> None:
    reasons = dict.fromkeys(("power_watts", "energy_joules", "throttle_reasons", "sm_clock_mhz"), "not supported")
    read = samples(
        SECONDS,
        lambda at: {
            "power_watts": None,
            "energy_millijoules": None,
            "throttle_bits": None,
            "sm_clock_mhz": None,
            "unavailable": reasons,
        },
    )
    for end in (3.0, 8.0):  # short windows too: too short is not why
        found = summary(read, 2.0, end, device)
        assert {name: found.unavailable[name] for name in reasons} == reasons
        assert all(getattr(found, name) is None for name in reasons)


def test_foreign_process(device: NvmlDevice) -> None:
    read = samples(SECONDS, processes=[*OURS, Process(7, 2**30, "miner")])
    assert summary(read, 2.0, 8.0, device).other_processes == ["pid 7 (miner), 1024 MiB"]


def test_a_process_id_of_another_namespace_accuses_nobody(device: NvmlDevice) -> None:
    found = summary(samples(SECONDS, processes=[Process(424242, 2**30)]), 2.0, 8.0, device)
    assert found.other_processes is None and "container" in found.unavailable["other_processes"]


def test_the_process_list_may_have_been_read_before_a_short_window(device: NvmlDevice) -> None:
    looked = samples([1.0], processes=[*OURS, Process(7, None)])
    found = summary([*looked, *samples([1.1, 1.2, 1.3])], 1.15, 1.25, device)
    assert found.other_processes == ["pid 7"]
    assert summary(samples([1.1, 1.2]), 1.0, 1.3, device).other_processes is None


def test_nobody_read_in_the_window(device: NvmlDevice) -> None:
    found = summary(samples([1.0, 2.0]), 5.0, 5.4, device)
    nothing = set(GPU_FIELDS) | set(PROCESS_FIELDS)
    assert set(found.unavailable) == nothing
    assert found.unavailable["temperature_celsius"] == "no reading fell into the window of 0.40 s"


def test_a_window_between_two_readings_still_has_a_cpu_share() -> None:
    found = summary(samples([1.0, 2.0]), 1.2, 1.7, None)
    assert found.process_cpu_percent is not None
    assert found.process_cpu_percent.mean == pytest.approx(100)


def test_the_worker_ends_midway() -> None:
    gone = [MonitorSample(at=at, usage=Unavailable(f"process {WORKER} has ended")) for at in (4.0, 5.0, 6.0)]
    found = summary([*samples([1.0, 2.0, 3.0]), *gone], 1.0, 6.0, None)
    assert found.process_cpu_percent is not None and found.process_cpu_percent.mean == pytest.approx(100)
    assert found.process_resident_bytes is not None and found.process_resident_bytes.count == 3
    after = summary([*samples([1.0, 2.0, 3.0]), *gone], 4.5, 6.0, None)
    assert after.process_cpu_percent is None and after.process_resident_bytes is None
    assert after.unavailable["process_cpu_percent"] == f"process {WORKER} has ended"
    assert after.unavailable["process_resident_bytes"] == f"process {WORKER} has ended"


def test_two_readings_at_almost_the_same_time_make_no_extreme() -> None:
    # The clock moved by 1 ms within 10 us: 10,000 % if it were believed.
    read = [*samples([1.0, 2.0]), MonitorSample(at=2.00001, usage=Usage(2.001, 5000)), *samples([3.0])]
    found = summary(read, 1.0, 3.0, None).process_cpu_percent
    assert found is not None and found.max < 101


@pytest.mark.parametrize("device", [None, Unavailable("the NVIDIA driver is not loaded")])
def test_every_gpu_field_has_a_reason_without_a_gpu(device: Unavailable | None) -> None:
    found = summary(samples(SECONDS), 1.0, 9.0, device)
    assert set(found.unavailable) == set(GPU_FIELDS)
    assert len(set(found.unavailable.values())) == 1
    assert found.process_cpu_percent is not None


def test_an_error_in_the_window_leaves_no_half_truth(device: NvmlDevice) -> None:
    found = summary(samples(SECONDS), 2.0, 8.0, device, error=(7.0, "the monitor stopped: OSError: gone"))
    assert set(found.unavailable) == set(GPU_FIELDS) | set(PROCESS_FIELDS)
    assert set(found.unavailable.values()) == {"the monitor stopped: OSError: gone"}
    before = summary(samples(SECONDS), 2.0, 6.5, device, error=(7.0, "the monitor stopped: OSError: gone"))
    assert before.temperature_celsius is not None


def test_every_field_of_the_schema_is_covered() -> None:
    # Energy per item is the runner's to fill: the monitor knows of no items.
    theirs = {"energy_per_item_joules", "unavailable"}
    assert {*GPU_FIELDS, *PROCESS_FIELDS, *theirs} == set(Utilization.__struct_fields__)
