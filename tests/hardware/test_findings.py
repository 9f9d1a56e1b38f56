"""Each finding from made-up facts: a healthy machine, changed in one place."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gpubench.hardware.checkup import findings
from gpubench.hardware.cpu import CpuFacts
from gpubench.hardware.doctor_facts import Checkup, DoctorFinding, GpuNow
from gpubench.hardware.facts import Device, Environment

CPU = CpuFacts(
    name="Test CPU",
    cores=8,
    physical_cores=8,
    total_memory_bytes=32 * 2**30,
    instruction_sets=["avx2"],
    last_level_cache_bytes=2**25,
    cpu_quota_cores=None,
    memory_limit_bytes=None,
    transparent_huge_pages="madvise",
    frequency_governor="performance",
    swap_used_bytes=0,
)
TUNED = {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=4294967296"}
ON_CPU = Checkup(
    requested="auto",
    device=Device(kind="cpu", name="Test CPU", cores=8, fast_dtypes=["float32"]),
    device_error="",
    environment=Environment(
        platform="Linux", python="3.11", torch="2.8.0", compiler="g++ 13", libc="glibc 2.36", variables=TUNED
    ),
    torch_error="",
    present=["cpu"],
    architectures=[],
    cpu=CPU,
    other_load_cores=0.05,
    steal_cores=0.0,
    python_headers=True,
    nvml_error="no NVIDIA driver is installed (libnvidia-ml.so.1 is missing)",
    cards=[],
    driver_version=None,
    driver_cuda=None,
    gpu=None,
)
ON_GPU = msgspec.structs.replace(
    ON_CPU,
    device=Device(
        kind="cuda",
        name="NVIDIA Test Card",
        index=0,
        uuid="GPU-1",
        total_memory_bytes=16 * 2**30,
        compute_capability=[12, 0],
        fast_dtypes=["float32", "tf32"],
    ),
    environment=Environment(
        platform="Linux",
        python="3.11",
        torch="2.8.0+cu128",
        cuda="12.8",
        cudnn="9.10.2",
        triton="3.4.0",
        compiler="g++ 13",
        libc="glibc 2.36",
    ),
    present=["cpu", "cuda:0"],
    architectures=["sm_80", "sm_90", "sm_120", "compute_120"],
    nvml_error="",
    cards=["NVIDIA Test Card"],
    driver_version="570.86.15",
    driver_cuda=[12, 8],
    gpu=GpuNow(
        utilization_percent=0,
        temperature_celsius=40,
        throttle_reasons=["gpu_idle"],
        other_processes=[],
        power_limit_watts=300,
        default_power_limit_watts=300,
    ),
)


def change(facts: Checkup, **fields: Any) -> Checkup:
    return msgspec.structs.replace(facts, **fields)


def environment(facts: Checkup, **fields: Any) -> Checkup:
    return change(facts, environment=msgspec.structs.replace(facts.environment, **fields))


def cpu(**fields: Any) -> Checkup:
    return change(ON_CPU, cpu=msgspec.structs.replace(CPU, **fields))


def gpu(**fields: Any) -> Checkup:
    return change(ON_GPU, gpu=msgspec.structs.replace(ON_GPU.gpu, **fields))


def device(**fields: Any) -> Checkup:
    return change(ON_GPU, device=msgspec.structs.replace(ON_GPU.device, **fields))


@pytest.mark.parametrize("facts", [ON_CPU, ON_GPU])
def test_a_healthy_machine_has_nothing_but_ok(facts: Checkup) -> None:
    found = findings(facts)
    assert {finding.severity for finding in found} == {"ok"}
    assert {"torch", "device", "compiler", "CPU load"} <= {finding.subject for finding in found}
    if facts is ON_GPU:
        assert any("cuda:0 NVIDIA Test Card (GPU-1), 16.0 GiB" in finding.found for finding in found)
        subjects = {"driver", "CUDA", "cuDNN", "triton", "GPU load", "throttling"}
        assert subjects <= {finding.subject for finding in found}


TOO_OLD = "The NVIDIA driver is too old for this torch."
CASES = {
    "no torch": (
        change(ON_CPU, environment=None, device=None, torch_error="ModuleNotFoundError: No module named 'torch'"),
        ("problem", "torch", "No module named 'torch'", "pytorch.org"),
    ),
    "old torch": (environment(ON_CPU, torch="2.5.1"), ("problem", "torch", "2.5.1 is older than 2.6", "Upgrade")),
    "device absent": (
        change(ON_CPU, requested="cuda:3", device=None, device_error="Device 'cuda:3' is not there."),
        ("problem", "device", "'cuda:3' is not there", "Name one"),
    ),
    "torch without CUDA beside a GPU": (
        change(ON_CPU, cards=["NVIDIA Test Card"], nvml_error="", driver_version="570"),
        ("problem", "GPU", "torch 2.8.0 is built without CUDA", "pytorch.org"),
    ),
    "GPU hidden": (
        change(
            environment(ON_CPU, cuda="12.8", variables={**TUNED, "CUDA_VISIBLE_DEVICES": "-1"}),
            cards=["Card"],
            nvml_error="",
        ),
        ("note", "GPU", "CUDA_VISIBLE_DEVICES='-1' hides it", "Unset"),
    ),
    "GPU unusable": (
        change(environment(ON_CPU, cuda="12.8"), cards=["Card"], nvml_error=""),
        ("problem", "GPU", "torch cannot use it", "torch.zeros"),
    ),
    "driver too old for torch": (
        change(
            environment(ON_CPU, cuda="12.8"), cards=["Card"], nvml_error="", driver_cuda=[11, 4], cuda_problem=TOO_OLD
        ),
        ("problem", "GPU", f"Card is here, but CUDA does not start. {TOO_OLD}", "the CPU is measured"),
    ),
    "driver too old for torch, and no NVML": (
        change(environment(ON_CPU, cuda="12.8"), cuda_problem=TOO_OLD),
        ("problem", "GPU", f"CUDA does not start. {TOO_OLD}", "until then"),
    ),
    "card lost": (
        change(ON_GPU, unreadable=["card 1 cannot be reached: the GPU is lost"]),
        ("problem", "GPU", "card 1 cannot be reached", "restart"),
    ),
    "foreign pynvml": (
        change(ON_CPU, nvml_error="the Python module pynvml is that of the package pynvml 8.0.4", nvml_foreign=True),
        ("note", "NVML", "pynvml 8.0.4", "A CPU is measured all the same"),
    ),
    "foreign pynvml beside a GPU": (
        change(ON_GPU, nvml_error="the package pynvml 8.0.4", nvml_foreign=True, cards=[], gpu=None, driver_cuda=None),
        ("problem", "NVML", "pynvml 8.0.4", "nothing is known"),
    ),
    "CUDA build, no driver": (
        environment(ON_CPU, cuda="12.8"),
        ("note", "GPU", "no GPU can be used: no NVIDIA driver is installed", "where there is no GPU"),
    ),
    "absent among several": (
        change(ON_GPU, requested="cuda:9", device=None, gpu=None, device_error="Device 'cuda:9' is not there."),
        ("problem", "device", "'cuda:9' is not there", "Name one"),
    ),
    "no NVML": (
        change(ON_GPU, nvml_error="the NVIDIA driver is not loaded", gpu=None),
        ("note", "driver", "the NVIDIA driver is not loaded", "utility"),
    ),
    "driver too old": (
        change(ON_GPU, driver_cuda=[11, 8]),
        ("problem", "CUDA", "built for CUDA 12.8, the driver runs 11.8 at most", "Update the driver"),
    ),
    "driver a little older": (change(ON_GPU, driver_cuda=[12, 4]), ("note", "CUDA", "the driver knows 12.4", "PTX")),
    "no code for the GPU": (
        change(ON_GPU, architectures=["sm_80", "sm_90"]),
        ("problem", "GPU code", "no code for compute capability 12.0 (it has sm_80, sm_90)", "newer torch"),
    ),
    "only PTX for the GPU": (
        change(ON_GPU, architectures=["sm_80", "sm_90", "compute_90"]),
        ("note", "GPU code", "only PTX for compute capability 12.0", "newer torch"),
    ),
    "no cuDNN": (environment(ON_GPU, cudnn=None), ("problem", "cuDNN", "none", "pytorch.org")),
    "no triton": (environment(ON_GPU, triton=None), ("problem", "triton", "torch.compile fails", "pip install triton")),
    "no compiler": (environment(ON_CPU, compiler=None), ("problem", "compiler", "no C++ compiler", "apt install g++")),
    "no headers": (
        change(ON_CPU, python_headers=False),
        ("problem", "Python headers", "Python.h is missing", "python3-dev"),
    ),
    "other processes": (
        gpu(other_processes=["pid 7 (miner), 1024 MiB"]),
        ("problem", "GPU load", "pid 7 (miner), 1024 MiB", "Stop them"),
    ),
    "busy for an unknown reason": (
        gpu(utilization_percent=60),
        ("problem", "GPU load", "60 % busy although nothing was started", "nvidia-smi"),
    ),
    "hot": (
        gpu(throttle_reasons=["sw_thermal_slowdown", "hw_thermal_slowdown"], temperature_celsius=92),
        ("problem", "throttling", "at 92 °C: hw_thermal_slowdown, sw_thermal_slowdown", "cool down"),
    ),
    "power brake": (gpu(throttle_reasons=["hw_power_brake"]), ("problem", "throttling", "hw_power_brake", "power")),
    "power cap": (
        gpu(throttle_reasons=["sw_power_cap"]),
        ("note", "throttling", "the power limit lowers the clocks", "Normal under load"),
    ),
    "limited power": (
        gpu(power_limit_watts=200),
        ("note", "power limit", "200 W, this card's default is 300 W", "nvidia-smi -pl 300"),
    ),
    "unreadable": (
        gpu(unavailable={"power_watts": "not supported"}),
        ("note", "NVML", "power_watts (not supported)", "null"),
    ),
    "launch blocking": (
        environment(ON_GPU, variables={"CUDA_LAUNCH_BLOCKING": "1"}),
        ("problem", "environment", "CUDA_LAUNCH_BLOCKING=1", "Unset"),
    ),
    "fixed threads": (
        environment(ON_CPU, variables={**TUNED, "OMP_NUM_THREADS": "1"}),
        ("note", "environment", "OMP_NUM_THREADS=1", "threads toggle"),
    ),
    "CPU used by others": (
        change(ON_CPU, other_load_cores=3.0),
        ("problem", "CPU load", "others use 3.00 of 8 cores", "wait"),
    ),
    "CPU used a little": (change(ON_CPU, other_load_cores=0.3), ("note", "CPU load", "0.30 of 8", "differences")),
    "CPU used by others beside a GPU": (change(ON_GPU, other_load_cores=3.0), ("note", "CPU load", "3.00", "wait")),
    "steal": (change(ON_CPU, steal_cores=0.5), ("note", "steal time", "takes 0.50 of 8", "steadier")),
    "CPU quota": (
        cpu(cpu_quota_cores=2.5),
        ("problem", "CPU quota", "allows 2.5 cores' time, torch starts threads for 8", "--fix threads=2"),
    ),
    "memory limit": (cpu(memory_limit_bytes=2**31), ("note", "memory limit", "2.0 GiB", "killed")),
    "swap": (cpu(swap_used_bytes=2**30), ("note", "swap", "1024 MiB are swapped out", "close")),
    "malloc": (environment(ON_CPU, variables={}), ("note", "malloc", "at every step", "stage `environment`")),
    "huge pages": (cpu(transparent_huge_pages="never"), ("note", "huge pages", "off", "transparent_hugepage")),
    "governor": (cpu(frequency_governor="powersave"), ("note", "frequency", "powersave", "performance")),
}


@pytest.mark.parametrize("name", CASES)
def test_each_finding(name: str) -> None:
    facts, (severity, subject, found, advice) = CASES[name]
    bad = [finding for finding in findings(facts) if finding.severity != "ok"]
    assert len(bad) == 1, bad  # it alone, and nothing else wrong
    assert (bad[0].severity, bad[0].subject) == (severity, subject)
    assert found in bad[0].found
    assert advice in bad[0].advice


def test_there_is_a_case_for_every_subject_that_can_be_wrong() -> None:
    import re
    from pathlib import Path

    import gpubench.hardware

    source = "".join(path.read_text() for path in Path(gpubench.hardware.__path__[0]).glob("doctor_s*.py"))
    subjects = set(re.findall(r"(?:note|problem)\(\s*\"([^\"]+)\"", source))
    assert subjects <= {expected[1] for _, expected in CASES.values()}
    assert len(subjects) > 15


@pytest.mark.parametrize(
    "facts",
    [
        cpu(cpu_quota_cores=8.0),
        cpu(memory_limit_bytes=64 * 2**30),
        cpu(swap_used_bytes=2**20),
        cpu(frequency_governor=None, transparent_huge_pages=None, swap_used_bytes=None),
        change(ON_CPU, other_load_cores=None, steal_cores=None),
        environment(ON_CPU, variables={"LD_PRELOAD": "/usr/lib/libjemalloc.so.2"}),
        environment(ON_CPU, libc=None, variables={}),
        environment(ON_GPU, variables={"CUDA_LAUNCH_BLOCKING": "0"}),
        device(compute_capability=[9, 0]),
        change(ON_GPU, driver_cuda=[13, 0]),
        change(ON_CPU, requested="cpu", cards=["Card"], nvml_error=""),
    ],
)
def test_what_is_no_fault(facts: Checkup) -> None:
    assert {finding.severity for finding in findings(facts)} == {"ok"}


def test_machine_code_runs_on_later_minor_versions_of_its_major_only() -> None:
    def code(capability: list[int], built: list[str]) -> list[DoctorFinding]:
        facts = msgspec.structs.replace(device(compute_capability=capability), architectures=built)
        return [finding for finding in findings(facts) if finding.subject == "GPU code"]

    assert code([8, 9], ["sm_80", "sm_86"]) == []
    assert code([8, 0], ["sm_86"])[0].severity == "problem"
    assert code([9, 0], ["sm_80"])[0].severity == "problem"
    assert code([9, 0], ["sm_90a"]) == []


def test_one_thread_under_a_small_quota() -> None:
    advice = [finding.advice for finding in findings(cpu(cpu_quota_cores=0.5)) if finding.subject == "CPU quota"]
    assert advice == ["Use at most 1 thread: --fix threads=1."]


def test_a_machine_without_a_gpu_is_told_that_nothing_of_it_was_looked_at() -> None:
    said = [one for one in findings(change(ON_CPU, requested="auto", nvml_error="no driver")) if one.subject == "GPU"]
    assert [(one.severity, "no driver" in one.found) for one in said] == [("ok", True)]
    assert not [one for one in findings(change(ON_CPU, requested="cpu", nvml_error="")) if one.subject == "GPU"]
