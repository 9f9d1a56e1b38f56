"""Whether two reports may be compared: same workload, and same machine, software and protocol."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from gpubench.errors import unknown_name
from gpubench.regression.matching import settings
from gpubench.report.model import Protocol, Report
from gpubench.toggles.traits import batch_size_toggle

# Fields of the protocol that do not change how a step is timed.
INDIFFERENT = frozenset(
    {
        "seed", "timeout_s", "rounds", "final_rounds", "cool_down_s", "throttle_retries", "monitor_hz",
        "machine_drift", "interval",
    }
)  # fmt: skip

# Variables without effect: where torch keeps files, and the visible devices, which `device` and `uuid` cover.
PLACES = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES")
PLACE_ENDINGS = ("_DIR", "_HOME")
# The sides of one session may differ in anything else: that is what they are compared for.
OF_A_SESSION = ("device", "uuid", "cores")


@dataclass(frozen=True)
class Difference:
    """A field in which two reports differ, with both values as text."""

    field: str
    baseline: str
    current: str

    def __str__(self) -> str:
        return f"{self.field}: {self.baseline} against {self.current}"


def _protocol(report: Report) -> dict[str, object]:
    timing = msgspec.to_builtins(report.protocol)
    return {name: timing[name] for name in Protocol.__struct_fields__ if name not in INDIFFERENT}


def _variables(report: Report) -> dict[str, object]:
    found = report.environment.variables
    return {name: found[name] for name in found if name not in PLACES and not name.endswith(PLACE_ENDINGS)}


# What is compared, by the names that --allow-different takes. Cards of one model differ by 8 % (22 % at worst;
# Sinha et al., "Not All GPUs Are Created Equal", SC 2022), so each card needs its own baselines.
FIELDS: dict[str, Callable[[Report], object]] = {
    "device": lambda report: (report.device.kind, report.device.name),
    "uuid": lambda report: report.device.uuid,
    "cores": lambda report: (report.device.cores, report.device.physical_cores),
    "power_limit": lambda report: report.device.power_limit_watts,
    "mig": lambda report: report.device.mig,
    "driver": lambda report: (report.device.driver_version or "").partition(".")[0] or None,
    "torch": lambda report: report.environment.torch,
    "cuda": lambda report: report.environment.cuda,
    "cudnn": lambda report: report.environment.cudnn,
    "triton": lambda report: report.environment.triton,
    "compiler": lambda report: report.environment.compiler,
    "libc": lambda report: report.environment.libc,
    "variables": _variables,  # those that torch reads, such as precision flags
    "command": lambda report: report.plan.command,
    # Of the baseline row, such as those set by --fix; the batch size has a field of its own.
    "settings": lambda report: {name: value for name, value in settings(report).items() if name != batch_size_toggle()},
    "batch_size": lambda report: report.workload.batch_size,
    "input_shapes": lambda report: report.workload.input_shapes,
    "protocol": _protocol,
}


def check_fields(names: Iterable[str]) -> None:
    """Raises GpubenchError where one is not in `FIELDS`."""
    for name in names:
        if name not in FIELDS:
            raise unknown_name("field", name, FIELDS)


def about(report: Report) -> tuple[str, ...]:
    """The requested workload: reports about different ones have no rows in common."""
    workload = report.workload
    parameters = json.dumps(workload.parameters, sort_keys=True)
    return (workload.name, workload.mode, workload.size, parameters)


def are_paired(baseline: Report, current: Report) -> bool:
    """Whether both were measured in the same interleaved rounds."""
    return baseline.session is not None and baseline.session == current.session


def differences(baseline: Report, current: Report) -> list[Difference]:
    """The fields in which the two differ, in the order of `FIELDS`."""
    differing = []
    for name, read in FIELDS.items():
        before, now = read(baseline), read(current)
        if isinstance(before, dict) and isinstance(now, dict):  # only the keys that differ
            # Of the settings only toggles that both know.
            keys = [key for key in before if key in now] if name == "settings" else [*dict.fromkeys([*before, *now])]
            keys = [key for key in keys if before.get(key) != now.get(key)]
            before, now = (", ".join(f"{key}={_text(side.get(key))}" for key in keys) for side in (before, now))
        if before != now:
            differing.append(Difference(name, _text(before), _text(now)))
    return differing


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_text, value))
    return "none" if value is None else str(value)


def refused(baseline: Report, current: Report, allow: Sequence[str] = ()) -> list[Difference]:
    """The differences that prevent a comparison: those not in `allow`."""
    differing = [each for each in differences(baseline, current) if each.field not in allow]
    if not are_paired(baseline, current):
        return differing
    # Older versions of torch do not report a card's UUID.
    unread = [each for each in differing if each.field == "uuid" and "none" in (each.baseline, each.current)]
    return [each for each in differing if each.field in OF_A_SESSION and each not in unread]
