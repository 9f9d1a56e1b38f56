"""Whether two reports may be compared: the same workload, and machines, software and protocol that are alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from gpubench.results.schema import Protocol, Report

# Of the protocol: what does not change how a step is timed.
INDIFFERENT = frozenset({"seed", "timeout_s", "rounds", "duel_rounds", "cool_down_s", "throttle_retries", "monitor_hz"})


@dataclass(frozen=True)
class Difference:
    """A field in which two reports differ, as people read it."""

    field: str
    baseline: str
    current: str

    def __str__(self) -> str:
        return f"{self.field}: {self.baseline} against {self.current}"


def _driver_major(report: Report) -> str | None:
    version = report.device.driver_version
    return version.partition(".")[0] if version else None


def _protocol(report: Report) -> dict[str, object]:
    timing = msgspec.to_builtins(report.protocol)
    return {name: timing[name] for name in Protocol.__struct_fields__ if name not in INDIFFERENT}


# From the name that --allow-different takes to what is compared. Cards of one model differ by 8 % (22 % at worst;
# Sinha et al., "Not All GPUs Are Created Equal", SC 2022), so each card has baselines of its own.
FIELDS: dict[str, Callable[[Report], object]] = {
    "device": lambda report: (report.device.kind, report.device.name),
    "uuid": lambda report: report.device.uuid,
    "cores": lambda report: (report.device.cores, report.device.physical_cores),
    "power_limit": lambda report: report.device.power_limit_watts,
    "mig": lambda report: report.device.mig,
    "driver": _driver_major,
    "torch": lambda report: report.environment.torch,
    "cuda": lambda report: report.environment.cuda,
    "cudnn": lambda report: report.environment.cudnn,
    "triton": lambda report: report.environment.triton,
    "compiler": lambda report: report.environment.compiler,
    "libc": lambda report: report.environment.libc,
    "variables": lambda report: report.environment.variables,  # those that steer torch: precision flags among them
    "batch_size": lambda report: report.workload.batch_size,
    "input_shapes": lambda report: report.workload.input_shapes,
    "protocol": _protocol,
}


def about(report: Report) -> tuple[str, ...]:
    """The workload as it was asked for: reports about unlike ones have no rows in common."""
    workload = report.workload
    parameters = json.dumps(workload.parameters, sort_keys=True)
    return (workload.name, workload.mode, workload.size, parameters)


def differences(baseline: Report, current: Report) -> list[Difference]:
    """The fields in which the two are unlike, in the order of `FIELDS`."""
    found = []
    for name, read in FIELDS.items():
        one, other = read(baseline), read(current)
        if one != other:
            found.append(_difference(name, one, other))
    return found


def _difference(name: str, one: object, other: object) -> Difference:
    if isinstance(one, dict) and isinstance(other, dict):  # only what differs of it
        keys = [key for key in dict.fromkeys([*one, *other]) if one.get(key) != other.get(key)]
        return Difference(name, _words(one, keys), _words(other, keys))
    return Difference(name, _text(one), _text(other))


def _words(values: dict[str, object], keys: Iterable[str]) -> str:
    return ", ".join(f"{key}={_text(values.get(key))}" for key in keys)


def _text(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return " ".join(map(_text, value))
    return str(value)


def nearest(candidates: Sequence[tuple[str, Report]], current: Report) -> tuple[str, Report] | None:
    """Among baselines of the same workload the one that differs least, the newest of those; None without any."""
    alike = [one for one in candidates if about(one[1]) == about(current)]
    newest = sorted(alike, key=lambda one: one[1].created_at, reverse=True)
    return min(newest, key=lambda one: len(differences(one[1], current)), default=None)
