from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gpubench.errors import GpubenchError
from gpubench.executor.fork_server import server_environment
from gpubench.hardware import checkup
from gpubench.hardware.checkup import check_up, gpu_now, run_probe
from gpubench.hardware.cpu import CpuTimes
from gpubench.hardware.facts import Device
from gpubench.hardware.nvml import Nvml, NvmlDevice
from gpubench.hardware.nvml_call import Unavailable
from tests.fake_nvml import NOT_SUPPORTED, FakeGpu, FakeNvml, fake_nvml

__all__ = ["fake_nvml"]

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", ""])
def test_no_device_at_all(device: str) -> None:
    with pytest.raises(GpubenchError, match=r"is not understood\. Allowed: auto, cpu, cuda:N\."):
        check_up(device)


def test_this_machine() -> None:
    facts = check_up("cpu")
    assert facts.torch_error == facts.device_error == ""
    assert facts.device is not None and facts.device.kind == "cpu"
    assert facts.environment is not None
    assert facts.other_load_cores is None or facts.other_load_cores >= 0


def test_an_absent_device_leaves_the_software_known() -> None:
    facts = check_up("cuda:97")
    assert facts.device is None and facts.environment is not None and facts.torch_error == ""
    assert facts.device_error.startswith("Device 'cuda:97' is not there.")
    assert facts.present[0] == "cpu"


def broken_python(tmp_path: Path, script: str) -> str:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    return str(python)


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (
            "echo 'Traceback' >&2; echo 'ImportError: libcudart.so.12: cannot open' >&2; exit 1",
            "ImportError: libcudart",
        ),
        ("echo no json", "the probe's answer cannot be read"),
        ("true", "the probe's answer cannot be read"),
        ("exit 7", "the probe failed"),
        ("kill -SEGV $$", "the probe ended with signal 11"),
    ],
)
def test_a_broken_torch_is_a_sentence(tmp_path: Path, script: str, error: str) -> None:
    probe, found = run_probe("cpu", broken_python(tmp_path, script))
    assert probe is None and found.startswith(error)


def test_a_missing_python_is_a_sentence(tmp_path: Path) -> None:
    probe, found = run_probe("cpu", str(tmp_path / "none"))
    assert probe is None and "cannot be run" in found


def test_a_torch_that_hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checkup, "PROBE_LIMIT_S", 0.2)
    assert run_probe("cpu", broken_python(tmp_path, "exec sleep 20")) == (None, "no answer from torch within 0 s")


def test_the_probe_counts_cards_as_the_measuring_processes_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    python = broken_python(tmp_path, "echo order $CUDA_DEVICE_ORDER $PYTORCH_NVML_BASED_CUDA_CHECK >&2; exit 1")
    assert run_probe("cpu", python) == (None, "order PCI_BUS_ID 1")
    ours = server_environment({}, sys.executable, tmp_path)
    assert (ours["CUDA_DEVICE_ORDER"], ours["PYTORCH_NVML_BASED_CUDA_CHECK"]) == ("PCI_BUS_ID", "1")


def test_torch_missing_is_told_from_device_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "run_probe", lambda device: (None, "ModuleNotFoundError: No module named 'torch'"))
    monkeypatch.setattr(checkup, "LEAST_LOAD_S", 0.0)
    for device in ("auto", "cpu", "cuda:0"):
        facts = check_up(device)
        assert facts.torch_error == "ModuleNotFoundError: No module named 'torch'"
        assert (facts.device, facts.environment, facts.device_error) == (None, None, "")


def test_load_of_others_leaves_ours_out() -> None:
    before, after = CpuTimes(busy=100, steal=10, ours=5), CpuTimes(busy=106, steal=11, ours=9)
    assert checkup._load(before, after, 2.0) == (1.0, 0.5)
    assert checkup._load(before, CpuTimes(busy=101, steal=10, ours=7), 2.0) == (0.0, 0.0)
    assert checkup._load(Unavailable("no"), after, 2.0) == (None, None)


def test_the_gpu_now(fake_nvml: FakeNvml) -> None:
    card = fake_nvml.add(FakeGpu(uuid="GPU-1", reasons=0x40, gpu_utilization=3, processes=[(7, 2**20)]))
    card.default_power_limit_milliwatts = 350_000
    card.fails["nvmlDeviceGetTotalEnergyConsumption"] = NOT_SUPPORTED
    nvml = Nvml.open()
    device = Device(kind="cuda", name="x", index=0, uuid="GPU-1")
    facts = checkup._nvml_facts(nvml, device)
    now = facts.pop("gpu")
    assert facts == {
        "cards": ["NVIDIA Test Card"], "unreadable": [], "driver_version": "570.86.15", "driver_cuda": [12, 8]
    }  # fmt: skip
    assert (now.throttle_reasons, now.utilization_percent) == (["hw_thermal_slowdown"], 3)
    assert (now.power_limit_watts, now.default_power_limit_watts) == (300, 350)
    assert now.other_processes == ["pid 7, 1 MiB"]
    assert set(now.unavailable) == {"energy_joules"}


def test_a_gpu_that_nvml_cannot_find(fake_nvml: FakeNvml) -> None:
    fake_nvml.add(FakeGpu(uuid="GPU-1"))
    facts = checkup._nvml_facts(Nvml.open(), Device(kind="cuda", name="x", index=0, uuid="GPU-2"))
    assert "GPU-2 cannot be reached" in facts["gpu"].unavailable["device"]


def test_processes_and_limits_that_cannot_be_read(fake_nvml: FakeNvml) -> None:
    card = fake_nvml.add(FakeGpu(uuid="GPU-1"))
    for name in ("nvmlDeviceGetComputeRunningProcesses_v2", "nvmlDeviceGetComputeRunningProcesses_v3"):
        card.fails[name] = NOT_SUPPORTED
    card.fails["nvmlDeviceGetEnforcedPowerLimit"] = NOT_SUPPORTED
    nvml = Nvml.open()
    assert isinstance(nvml, Nvml)
    device = nvml.device("GPU-1")
    assert isinstance(device, NvmlDevice)
    now = gpu_now(device)
    assert now.other_processes is None and now.power_limit_watts is None
    assert set(now.unavailable) == {"other_processes", "power_limit_watts"}


@pytest.mark.parametrize("module", ["gpubench.hardware.checkup", "gpubench.measure.monitor", "gpubench.hardware.gpus"])
def test_the_parents_side_never_imports_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0
