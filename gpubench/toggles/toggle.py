"""The types a toggle is made of. A toggle is one frozen `Toggle` instance in the file of its name."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gpubench.flags import Flag
from gpubench.hardware.facts import Device
from gpubench.workloads.workload_facts import WorkloadFacts

if TYPE_CHECKING:
    from gpubench.toggles.model_context import ModelContext

Value = str | int


class Stage(enum.IntEnum):
    """When a toggle is applied; lower ones first."""

    ENVIRONMENT = 0  # environment variables, read before the process starts
    PROBLEM = 1  # what is computed: batch size, tiles
    BACKEND = 2  # process-wide flags of torch
    MODEL = 3  # the model is rewritten
    DTYPE = 4
    LAYOUT = 5
    OPTIMIZER = 6
    COMPILE = 7
    GRAPH = 8


@dataclass(frozen=True, kw_only=True)
class Scope:
    """All that decides which toggles and values make sense; no torch needed."""

    device: Device
    workload: WorkloadFacts
    torch_version: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """What one value needs. An empty requirement is met everywhere."""

    device_kinds: tuple[str, ...] = ("cpu", "cuda")
    modes: tuple[str, ...] = ("inference", "training")
    compute_capability: tuple[int, int] | None = None  # at least; checked on CUDA only
    fast_dtype: str | None = None  # must be computed in hardware
    torch_version: tuple[int, int] | None = None  # at least
    check: Callable[[Scope], str | None] | None = None  # anything else: the sentence why not, or None
    why: str = ""  # ends the sentence: why the value needs it

    def unmet(self, scope: Scope) -> str | None:
        """The sentence why the value cannot run in `scope`, or None where it can."""
        device, reason = scope.device, None
        if device.kind not in self.device_kinds:
            reason = f"needs a {' or '.join(kind.upper() for kind in self.device_kinds)} device, this is {device.name}"
        elif scope.workload.mode not in self.modes:
            reason = f"is for {' and '.join(self.modes)}, this is {scope.workload.mode}"
        elif (
            device.kind == "cuda"
            and self.compute_capability
            and (device.compute_capability is None or tuple(device.compute_capability) < self.compute_capability)
        ):
            have = ".".join(map(str, device.compute_capability or ())) or "unknown"
            reason = f"needs compute capability {'.'.join(map(str, self.compute_capability))}, {device.name} has {have}"
        elif self.fast_dtype and self.fast_dtype not in device.fast_dtypes:
            reason = f"needs {self.fast_dtype} arithmetic in hardware, {device.name} would emulate it"
        elif self.torch_version and scope.torch_version < self.torch_version:
            reason = (
                f"needs torch {'.'.join(map(str, self.torch_version))}, "
                f"this is {'.'.join(map(str, scope.torch_version))}"
            )
        elif self.check:
            reason = self.check(scope)
        return f"{reason}; {self.why}" if reason and self.why else reason


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """`value` of this toggle cannot stand together with `other_values` of toggle `other`."""

    value: Value
    other: str
    other_values: tuple[Value, ...]
    reason: str


@dataclass(frozen=True, kw_only=True)
class Integers:
    """Beside the offered values, whole numbers from `low` to `high` are allowed."""

    low: int
    high: int
    meaning: str


@dataclass(frozen=True, kw_only=True)
class EvidenceResult:
    """What evidence found: `took_effect` is None where it could not be read, and `detail` says why."""

    took_effect: bool | None
    detail: str
    flag: Flag | None = None  # what a reader of the table must know although it took effect


def always(_: Scope) -> str | None:
    """Applies everywhere."""
    return None


def nothing(_: Value) -> None:
    """Sets nothing that holds for the whole process."""


@dataclass(frozen=True, kw_only=True)
class Toggle:
    """One optimization and its values; the first value is the baseline."""

    name: str
    summary: str
    values: Mapping[Value, str]  # value -> what it does, one line; the first is the baseline
    stage: Stage
    usage: Callable[[Value], str]  # Python (or shell) that switches the value on in the reader's own code
    applies: Callable[[Scope], str | None] = always  # None: applies; else the sentence why it does not
    requires: Mapping[Value, Requirement] = field(default_factory=dict)
    conflicts: tuple[Conflict, ...] = ()
    offers: Callable[[Scope], tuple[Value, ...]] | None = None  # baseline first
    integers: Integers | None = None
    check: Callable[[Scope, Value, Mapping[str, Value]], str | None] | None = None
    """Why `value` cannot run in the scope beside the other values of a configuration (which may be empty), or None:
    what a mapping of values cannot say because it concerns whole numbers or two values together."""
    environment: Callable[[Value], dict[str, str]] | None = None  # only for Stage.ENVIRONMENT
    process_state: Callable[[Value], object] = nothing
    """What `value` sets for the whole process, to be compared by `==`; None: nothing. Two configurations can live in
    one process only where these are equal for every toggle (`sharing.py`). Called without torch."""
    apply: Callable[[ModelContext, Value], None]
    evidence: Callable[[ModelContext, Value], EvidenceResult]
    tolerance: Mapping[Value, float] = field(default_factory=dict)  # relative output error allowed, where above fp32's
    changes_problem: bool = False  # the reference outputs are made with the same value (batch size, tiles)
    claims: tuple[str, ...] = ()  # published guides that promise a gain from it: ids of docs/claims.md
    source: str  # where the method and its facts are from

    def offered(self, scope: Scope) -> tuple[Value, ...]:
        """The values in `scope`, baseline first, whether or not their requirements are met."""
        return self.offers(scope) if self.offers else tuple(self.values)

    def baseline(self, scope: Scope) -> Value:
        """The value that a baseline configuration has in `scope`."""
        return self.offered(scope)[0]

    def unmet(self, scope: Scope, value: Value, configuration: Mapping[str, Value] | None = None) -> str | None:
        """The sentence why `value` cannot run in `scope`, beside `configuration` where given; None where it can."""
        others = configuration or {}
        reason = self.requires.get(value, Requirement()).unmet(scope)
        for conflict in self.conflicts:
            if reason is None and conflict.value == value and others.get(conflict.other) in conflict.other_values:
                reason = f"cannot stand together with {conflict.other}={others[conflict.other]}: {conflict.reason}"
        if reason is None and self.check is not None:
            reason = self.check(scope, value, others)
        return reason
