"""What is wrong here, or could be better, before anything is measured. Pure: facts in, findings out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gpubench.hardware import doctor_software as software
from gpubench.hardware import doctor_state as state
from gpubench.hardware.doctor_facts import Checkup, DoctorFinding, GpuNow, Severity

__all__ = ["Checkup", "DoctorFinding", "GpuNow", "Severity", "findings"]

LOOKS: tuple[Callable[[Checkup], Iterator[DoctorFinding]], ...] = (
    software.torch_itself,
    software.device,
    software.driver,
    software.gpu_code,
    software.libraries,
    software.compiler,
    software.steering,
    state.gpu_now,
    state.cpu_load,
    state.limits,
    state.cpu_settings,
)


def findings(facts: Checkup) -> list[DoctorFinding]:
    """Everything that was looked at: torch, device, driver, compiler, environment, then load and limits."""
    return [finding for look in LOOKS for finding in look(facts)]
