from __future__ import annotations

import dataclasses
import os
import sys
import time
from pathlib import Path

import pytest

from gpubench.hardware.amd import AmdDevice, AmdSmi
from gpubench.hardware.monitored import Process, memory_of
from gpubench.hardware.nvml_call import Unavailable
from gpubench.measure.device_free import busy_before
from gpubench.measure.monitor import Monitor
from gpubench.measure.readings import GPU_FIELDS
from tests.hardware.fake_amdsmi import AmdSmiTemperatureType, FakeAmd, FakeAmdSmi, install


def opened() -> AmdSmi:
    smi = AmdSmi.open()
    assert isinstance(smi, AmdSmi)
    return smi


def only() -> AmdDevice:
    device = opened().device(None)
    assert isinstance(device, AmdDevice)
    return device


@pytest.fixture
def card() -> FakeAmd:
    return FakeAmd()


@pytest.fixture
def smi(monkeypatch: pytest.MonkeyPatch, card: FakeAmd) -> FakeAmdSmi:
    return install(monkeypatch, card)


def test_all_readings_and_their_units(smi: FakeAmdSmi, card: FakeAmd) -> None:
    sample = only().sample()
    assert (sample.gpu_utilization_percent, sample.memory_utilization_percent) == (93, 35)
    assert sample.memory_used_bytes == 2 * 2**30
    assert sample.power_watts == 412
    assert sample.energy_millijoules == 30_518  # 2,000,000 ticks of 15.259 uJ
    assert (sample.temperature_celsius, sample.sm_clock_mhz, sample.memory_clock_mhz) == (61, 2100, 1300)
    assert sample.throttle_bits is None
    assert set(sample.unavailable) == {"throttle_reasons"}
    assert isinstance(only().activity_meter(), Unavailable)


def test_what_older_versions_and_other_cards_say(smi: FakeAmdSmi, card: FakeAmd) -> None:
    card.power = {"current_socket_power": 0xFFFF, "average_socket_power": 180}
    card.energy = {"power": 1000, "counter_resolution": 1000.0}
    card.temperatures = {AmdSmiTemperatureType.HOTSPOT: 77}
    card.clocks = {kind: {"cur_clk": 900} for kind in card.clocks}
    sample = only().sample()
    assert (sample.power_watts, sample.energy_millijoules, sample.temperature_celsius) == (180, 1000, 77)
    assert (sample.sm_clock_mhz, sample.memory_clock_mhz) == (900, 900)
    card.power = {"socket_power": 190, "average_socket_power": 180}
    assert only().sample().power_watts == 190


def test_not_available_is_no_number(smi: FakeAmdSmi, card: FakeAmd) -> None:
    card.activity = {"gfx_activity": "N/A", "umc_activity": 0xFFFF}
    card.clocks = {kind: {"clk": "N/A"} for kind in card.clocks}
    sample = only().sample()
    for name in ("gpu_utilization_percent", "memory_utilization_percent", "sm_clock_mhz"):
        assert getattr(sample, name) is None
        assert sample.unavailable[name] == "this GPU does not support it (AMD SMI: N/A)"


def test_every_call_refused(smi: FakeAmdSmi) -> None:
    device = only()
    smi.refused = set(smi.functions)
    sample = device.sample()
    values = {name: value for name, value in dataclasses.asdict(sample).items() if name != "unavailable"}
    assert set(values.values()) == {None}
    assert len(sample.unavailable) == len(values)
    assert "AMD SMI: AMDSMI_STATUS_NOT_SUPPORTED" in sample.unavailable["power_watts"]
    assert isinstance(device.processes(), Unavailable) and isinstance(memory_of(device.processes(), 1), Unavailable)
    assert isinstance(device.total_memory_bytes(), Unavailable)
    assert isinstance(AmdSmi.open(), Unavailable)


def test_a_version_without_a_function_or_a_constant(
    smi: FakeAmdSmi, monkeypatch: pytest.MonkeyPatch, card: FakeAmd
) -> None:
    monkeypatch.delattr(smi, "amdsmi_get_gpu_activity")
    monkeypatch.delattr(smi, "AmdSmiClkType")
    sample = only().sample()
    assert sample.unavailable["gpu_utilization_percent"] == "the installed amdsmi has no amdsmi_get_gpu_activity"
    assert sample.unavailable["sm_clock_mhz"] == "the installed amdsmi has no AmdSmiClkType.GFX"
    assert sample.temperature_celsius == 61


def test_processes(smi: FakeAmdSmi, card: FakeAmd) -> None:
    card.processes = [
        {"name": "/home/some one/python3", "pid": 10, "mem": 9, "memory_usage": {"vram_mem": 2**30}},
        {"name": "N/A", "pid": 11, "mem": 9},
    ]
    device = only()
    assert device.processes() == [Process(10, 2**30, "python3"), Process(11, None)]
    assert memory_of(device.processes(), 10) == 2**30
    assert isinstance(memory_of(device.processes(), 11), Unavailable)
    card.processes = [object()]  # handles, as ROCm 5 gave them
    assert isinstance(device.processes(), Unavailable)


def test_total_memory(smi: FakeAmdSmi) -> None:
    assert only().total_memory_bytes() == 196_592 * 2**20


def test_a_device_among_several(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = FakeAmd(uuid="uuid-1", hip_uuid="GPU-1111111111111111"), FakeAmd(uuid="uuid-2")
    install(monkeypatch, first, second)
    second.vram = {"vram_used": 7}
    # torch writes the 16 characters of HIP's UUID as bytes in hexadecimal.
    as_torch = "39323436-6234-6364-3865-663961316232"
    for uuid in (as_torch, "GPU-9246b4cd8ef9a1b2", "9246B4CD8EF9A1B2", "uuid-2"):
        device = opened().device(uuid)
        assert isinstance(device, AmdDevice)
        assert device.sample().memory_used_bytes == 7 * 2**20
    unknown = opened().device("another")
    assert isinstance(unknown, Unavailable) and "lists 2 GPUs" in unknown.reason


def test_the_monitor_reads_it(smi: FakeAmdSmi, card: FakeAmd) -> None:
    card.processes = [{"name": "python", "pid": os.getpid()}, {"name": "miner", "pid": 7}]
    with Monitor(os.getpid(), only()) as monitor:
        start = time.monotonic()
        time.sleep(0.15)
        found = monitor.window(start, time.monotonic())
        slow = monitor.slowdowns(start, time.monotonic())
    assert found.temperature_celsius is not None and found.temperature_celsius.mean == 61
    assert found.other_processes == ["pid 7 (miner)"]
    assert found.sm_activity_percent is None and "AMD SMI" in found.unavailable["sm_activity_percent"]
    assert all((getattr(found, name) is None) == (name in found.unavailable) for name in GPU_FIELDS)
    assert isinstance(slow, Unavailable) and isinstance(monitor.slowdowns_now(), Unavailable)
    assert busy_before(only(), 0.0) == "another process is on the device: pid " + (
        f"{os.getpid()} (python); pid 7 (miner)"
    )


def test_it_is_closed(smi: FakeAmdSmi) -> None:
    opened().close()
    assert not smi.is_open


def test_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "amdsmi", None)
    assert AmdSmi.open() == Unavailable("AMD SMI's Python package (amdsmi) is not installed")


def test_a_package_without_its_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "amdsmi.py").write_text("print('cannot open libamd_smi.so')\n{}['libamd_smi.so']\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "amdsmi", raising=False)
    broken = AmdSmi.open()
    assert isinstance(broken, Unavailable) and "libamd_smi.so" in broken.reason
    assert capsys.readouterr().out == ""  # commands that print JSON must stay readable
