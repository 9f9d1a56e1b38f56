"""What `doctor` looks at and what it says: plain data."""

from __future__ import annotations

from functools import partial
from typing import Literal

from msgspec import Struct, field

from gpubench.hardware.cpu import CpuFacts
from gpubench.hardware.facts import Device, Environment

Severity = Literal["ok", "note", "problem"]


class DoctorFinding(Struct, frozen=True):
    """One thing that was looked at."""

    severity: Severity
    subject: str
    found: str
    advice: str = ""  # what to do about it; empty where there is nothing to do


class GpuNow(Struct, frozen=True, kw_only=True):
    """The device under test as NVML sees it at this moment."""

    utilization_percent: float | None = None
    temperature_celsius: float | None = None
    throttle_reasons: list[str] | None = None
    other_processes: list[str] | None = None
    power_limit_watts: float | None = None
    default_power_limit_watts: float | None = None
    unavailable: dict[str, str] = field(default_factory=dict)


class Checkup(Struct, frozen=True, kw_only=True):
    """All facts that findings are made of."""

    requested: str  # device, as the user named it
    device: Device | None
    device_error: str  # why there is no device; empty where there is
    environment: Environment | None
    torch_error: str  # why torch does not work at all; empty where it does
    present: list[str]  # devices that torch can use
    architectures: list[str]  # GPU code inside torch: "sm_90", "compute_90"
    cpu: CpuFacts
    other_load_cores: float | None  # CPU time per second that others use
    steal_cores: float | None  # taken by the hypervisor
    python_headers: bool
    cuda_problem: str = ""  # why CUDA does not start although there is a GPU, as a sentence
    nvml_error: str = ""
    nvml_foreign: bool = False  # because another package has taken the name of its module
    cards: list[str] = field(default_factory=list)  # names of those that NVML sees
    unreadable: list[str] = field(default_factory=list)  # why NVML cannot reach others
    driver_version: str | None = None
    driver_cuda: list[int] | None = None  # newest CUDA that the driver runs
    gpu: GpuNow | None = None


ok = partial(DoctorFinding, "ok")  # looked at, and fine
note = partial(DoctorFinding, "note")  # worth knowing; measuring still works
problem = partial(DoctorFinding, "problem")  # measuring fails, or its figures are wrong for this machine


def on_cuda(facts: Checkup) -> bool:
    """Whether the device under test is a GPU."""
    return facts.device is not None and facts.device.kind == "cuda"
