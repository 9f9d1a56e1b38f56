"""Gathers the facts for `doctor` and its findings, without importing torch here: a process of its own asks torch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

import gpubench
from gpubench.errors import GpubenchError, check_current_folder
from gpubench.hardware import doctor_software, doctor_state
from gpubench.hardware.cpu import CpuTimes, read_cpu, read_times
from gpubench.hardware.doctor_facts import Checkup, DoctorFinding, GpuNow
from gpubench.hardware.facts import Device
from gpubench.hardware.find_device import CUDA_ENVIRONMENT
from gpubench.hardware.monitored import Gatherer, other_processes
from gpubench.hardware.nvml import Nvml, NvmlDevice, Unavailable
from gpubench.hardware.nvml_call import FOREIGN
from gpubench.hardware.probe import DeviceProbe

PROBE_LIMIT_S = 180.0  # importing torch from a cold network disk takes a minute
LEAST_LOAD_S = 1.0  # of watching the CPU load; /proc/stat counts in ticks of 10 ms


LOOKS: tuple[Callable[[Checkup], Iterator[DoctorFinding]], ...] = (
    doctor_software.torch_itself,
    doctor_software.device,
    doctor_software.nvml_package,
    doctor_software.driver,
    doctor_software.gpu_code,
    doctor_software.libraries,
    doctor_software.compiler,
    doctor_software.steering,
    doctor_state.gpu_now,
    doctor_state.cpu_load,
    doctor_state.limits,
    doctor_state.cpu_settings,
)


def findings(facts: Checkup) -> list[DoctorFinding]:
    """Everything that was looked at: torch, device, driver, compiler, environment, then load and limits."""
    return [finding for look in LOOKS for finding in look(facts)]


def check_up(requested: str) -> Checkup:
    """The facts of this machine for `device` auto, cpu, cuda or cuda:N. Raises GpubenchError for anything else."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", requested):
        raise GpubenchError(f"Device {requested!r} is not understood.", "Allowed: auto, cpu, cuda:N.")
    check_current_folder()
    before, started = read_times(), time.monotonic()
    probe, device_error, torch_error = _probe(requested)
    time.sleep(max(0.0, LEAST_LOAD_S - (time.monotonic() - started)))
    others, steal = _load(before, read_times(), time.monotonic() - started)
    device = probe.device if probe and not device_error else None
    nvml = Nvml.open()
    by_nvml = _nvml_facts(nvml, device)
    if isinstance(nvml, Nvml):
        nvml.close()
    return Checkup(
        requested=requested,
        device=device,
        device_error=device_error,
        environment=probe.environment if probe else None,
        torch_error=torch_error,
        present=probe.present if probe else [],
        cuda_problem=probe.cuda_problem if probe else "",
        architectures=probe.architectures if probe else [],
        cpu=read_cpu(),
        other_load_cores=others,
        steal_cores=steal,
        python_headers=Path(sysconfig.get_path("include"), "Python.h").is_file(),
        **by_nvml,
    )


def _probe(requested: str) -> tuple[DeviceProbe | None, str, str]:
    """What torch says, why the device is not there, why torch does not work."""
    probe, error = run_probe(requested)
    if probe or requested == "cpu":
        return probe, "", "" if probe else error
    # A missing device must not hide what is known of the software.
    fallback, broken = run_probe("cpu")
    return (fallback, error, "") if fallback else (None, "", broken)


def run_probe(device: str, python: str = sys.executable) -> tuple[DeviceProbe | None, str]:
    """The `DeviceProbe` of a device from a process of its own, or None and the last line of what went wrong."""
    root = str(Path(gpubench.__file__).parents[1])
    path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH", "")) if part)
    command = [python, "-P", "-m", "gpubench.hardware.probe", device]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROBE_LIMIT_S,
            env={**CUDA_ENVIRONMENT, **os.environ, "PYTHONPATH": path},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, f"no answer from torch within {PROBE_LIMIT_S:.0f} s"
    except OSError as error:
        return None, f"{python} cannot be run: {error}"
    if done.returncode == 0:
        try:
            return msgspec.json.decode(done.stdout.splitlines()[-1], type=DeviceProbe), ""
        except (msgspec.MsgspecError, IndexError) as error:
            return None, f"the probe's answer cannot be read: {error}"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    ended = f"the probe ended with signal {-done.returncode}" if done.returncode < 0 else "the probe failed"
    return None, lines[-1].removeprefix("gpubench.errors.GpubenchError: ") if lines else ended


def _load(
    before: CpuTimes | Unavailable, after: CpuTimes | Unavailable, seconds: float
) -> tuple[float | None, float | None]:
    """Cores that others kept busy and that the hypervisor took, on average over `seconds`."""
    if isinstance(before, Unavailable) or isinstance(after, Unavailable):
        return None, None
    others = (after.busy - before.busy) - (after.ours - before.ours)
    return max(0.0, others / seconds), max(0.0, (after.steal - before.steal) / seconds)


def _nvml_facts(nvml: Nvml | Unavailable, device: Device | None) -> dict[str, Any]:
    """The fields of `Checkup` that NVML tells."""
    if isinstance(nvml, Unavailable):
        return {"nvml_error": nvml.reason, "nvml_foreign": nvml.code == FOREIGN}
    got, cards = Gatherer(), nvml.devices()
    counted = [] if isinstance(cards, Unavailable) else cards
    named = {index: card.state().name for index, card in enumerate(counted) if isinstance(card, NvmlDevice)}
    got.put("cards", [name or f"a card without a name (number {index})" for index, name in named.items()])
    got.put("unreadable", [card.reason for card in counted if isinstance(card, Unavailable)])
    got.put("driver_version", nvml.driver_version())
    got.put("driver_cuda", nvml.cuda_version(), list)
    if device is not None and device.kind == "cuda":
        environment = {**CUDA_ENVIRONMENT, **os.environ}
        card = nvml.device(device.uuid) if device.uuid else nvml.cuda_device(device.index or 0, environment)
        got.put("gpu", GpuNow(unavailable={"device": card.reason}) if isinstance(card, Unavailable) else gpu_now(card))
    return got.values


def gpu_now(device: NvmlDevice) -> GpuNow:
    """The state of `device` at this moment, while nothing of ours runs on it."""
    sample, state = device.sample(), device.state()
    unavailable = dict(sample.unavailable)
    if state.power_limit_watts is None:
        unavailable["power_limit_watts"] = state.unavailable["power_limit_watts"]
    listed = device.processes()
    others = listed if isinstance(listed, Unavailable) else other_processes(listed, frozenset(), we_use_it=False)
    if isinstance(others, Unavailable):
        unavailable["other_processes"] = others.reason
    return GpuNow(
        utilization_percent=sample.gpu_utilization_percent,
        temperature_celsius=sample.temperature_celsius,
        throttle_reasons=sample.throttle_reasons,
        other_processes=None if isinstance(others, Unavailable) else [str(process) for process in others],
        power_limit_watts=state.power_limit_watts,
        default_power_limit_watts=state.default_power_limit_watts,
        unavailable=unavailable,
    )
