"""The types that describe a toggle. Each toggle is one frozen `Toggle` instance in a file of the same name."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gpubench.flags import Flag
from gpubench.hardware.facts import Device, Environment
from gpubench.report.model import Value
from gpubench.workloads.workload_facts import WorkloadFacts

if TYPE_CHECKING:
    from gpubench.toggles.model_context import ModelContext


AS_BUILT = "as-built"  # the value that leaves to the workload's own code what a toggle sets


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


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What decides which toggles and values apply; read without torch."""

    device: Device
    workload: WorkloadFacts
    torch_version: tuple[int, int]

    @classmethod
    def of(cls, device: Device, workload: WorkloadFacts, environment: Environment) -> Scope:
        """The scope of a run, as a look at it or its report tells."""
        numbers = re.match(r"(\d+)\.(\d+)", environment.torch)
        version = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
        return cls(device=device, workload=workload, torch_version=version)


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """What one value needs from device, workload and torch. An empty requirement is met everywhere."""

    device_kinds: tuple[str, ...] = ("cpu", "cuda")
    modes: tuple[str, ...] = ("inference", "training")
    compute_capability: tuple[int, int] | None = None  # at least; checked on CUDA only
    fast_dtype: str | None = None  # the hardware must compute it without emulation
    torch_version: tuple[int, int] | None = None  # at least
    check: Callable[[Scope], str | None] | None = None  # anything else: the reason why not, or None
    why: str = ""  # why the value needs it; ends the reason

    def unmet(self, scope: Scope) -> str | None:
        """The reason why the value cannot run in `scope`, or None if it can."""
        device, reason = scope.device, None
        if device.kind not in self.device_kinds:
            reason = f"needs a {' or '.join(kind.upper() for kind in self.device_kinds)} device, this is {device.name}"
        elif scope.workload.mode not in self.modes:
            reason = f"is for {' and '.join(self.modes)} only"
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
    """`value` of this toggle cannot be combined with `other_values` of toggle `other`."""

    value: Value
    other: str
    other_values: tuple[Value, ...]
    reason: str


@dataclass(frozen=True, kw_only=True)
class Integers:
    """Whole numbers from `low` to `high` are allowed as well as the offered values."""

    low: int
    high: int
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Texts of the form `pattern` (a regular expression) are allowed as well as the offered values, without commas.

    `Toggle.check` says which of them the workload has.
    """

    pattern: str
    meaning: str
    example: str


@dataclass(frozen=True)
class EvidenceResult:
    """Whether a toggle took effect; None if that could not be determined, and `detail` says why."""

    took_effect: bool | None
    detail: str
    flag: Flag | None = None  # what a reader of the table must know although it took effect
    name: str = ""  # what the baseline is called in tables, where the workload's own code made it so
    graph_breaks: int | None = None  # that a compiler counted; None where nothing was compiled
    frames_compiled: int | None = None  # the same
    recompiles: int | None = None  # the same: of frames that it had compiled before


def always(_: Scope) -> str | None:
    """Applies everywhere."""
    return None


def in_force(_: ModelContext, value: Value) -> None:
    """Nothing to apply: the value is in force before the model is built."""


def as_number(value: Value) -> float:
    """The value itself if it is a number; infinity for a string."""
    return value if isinstance(value, int) else math.inf


@dataclass(frozen=True, kw_only=True)
class Toggle:
    """One optimization and its values; the first value is the baseline.

    Example:

        def apply(context: ModelContext, value: Value) -> None:
            if value == "on":
                context.step.grad_mode = torch.inference_mode

        def evidence(context: ModelContext, value: Value) -> EvidenceResult:
            chosen = context.step.grad_mode is torch.inference_mode
            return EvidenceResult(chosen == (value == "on"), f"inference mode: {chosen}")

        INFERENCE_MODE = Toggle(
            name="inference_mode", summary="Inference mode instead of no_grad.", values={"off": "...", "on": "..."},
            stage=Stage.BACKEND, apply=apply, evidence=evidence, source="...",
            usage=lambda value, scope: "...",
        )
    """

    name: str
    summary: str
    values: Mapping[Value, str]  # value -> what it does, one line; the first is the baseline
    stage: Stage
    usage: Callable[[Value, Scope | None], str]
    """Python (or shell) that does in the reader's own code what `apply` does; without a scope, for any workload.

    It finds and sets these names: `model`, `inputs` (one batch), `device`, `optimizer`, and of a workload that is cut
    into tiles `options`. What belongs into each step it sets as `autocast` and `scaler`, and says so.
    """
    usage_beside: Callable[[Value, Scope | None, Mapping[str, Value]], str] | None = None
    """What is printed instead where the whole configuration is known, of toggles that share a call; nothing: the lines
    of another toggle hold it."""
    applies: Callable[[Scope], str | None] = always  # None if it applies, else the reason
    requires: Mapping[Value, Requirement] = field(default_factory=dict)
    conflicts: tuple[Conflict, ...] = ()
    offers: Callable[[Scope], tuple[Value, ...]] | None = None  # the baseline first
    integers: Integers | None = None
    texts: Texts | None = None
    # Traits: what the rest of the package may know of a toggle without naming it; `traits.py` reads them.
    compiles: tuple[Value, ...] = ()  # values whose first step is a compilation
    replays_graphs: tuple[Value, ...] = ()  # values whose step replays CUDA graphs, with memory in pools of their own
    picks_by_time: tuple[Value, ...] = ()  # values under which kernels are picked by timing them, anew in each process
    ranks_anew_compiled: bool = False  # its values give the host work that compiled code does not have
    prerequisites: Mapping[Value, Mapping[str, tuple[Value, ...]]] = field(default_factory=dict)
    """What a value needs beside it: value -> {other toggle: values allowed, the preferred one first}."""
    idle_when: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    """Values of another toggle beside which this one does nothing, and only its baseline is allowed."""
    noise_group: Mapping[Value, str] = field(default_factory=dict)
    """Values under which identical processes differ more than usual -> what makes them differ. Unlisted: steady."""
    after: tuple[str, ...] = ()  # toggles of the same stage that are applied before this one
    is_plain: bool = True  # plain code has the first value by itself, so that it need not be printed
    sets_batch_size: bool = False  # the value is the number of items in one step
    magnitude: Callable[[Value], float] = as_number  # orders values in a sweep; infinite: larger than every number
    check: Callable[[Scope, Value, Mapping[str, Value]], str | None] | None = None
    """The reason why `value` cannot run in the scope and configuration (which may be empty), or None. For rules that
    depend on whole numbers, on texts or on two values together."""
    environment: Callable[[Value], dict[str, str]] | None = None  # only for Stage.ENVIRONMENT
    apply: Callable[[ModelContext, Value], None] = in_force
    evidence: Callable[[ModelContext, Value], EvidenceResult]
    tolerance: Mapping[Value, float | Callable[[WorkloadFacts], float]] = field(default_factory=dict)
    """Relative output error allowed, where above fp32's; that of a workload's own code depends on the workload."""
    reference: Callable[[Scope], Value] | None = None
    """The value under which the outputs are computed that others are compared with; None: the baseline."""
    unfit: Callable[[ModelContext], str | None] | None = None
    """Why the profiled step of a reference is none to compare with, or None."""
    undo: Callable[[Scope | None], str] | None = None
    """Code that takes back what the workload's own code sets, before `usage` of any value but AS_BUILT."""
    remark: Callable[[Scope], str | None] | None = None  # a sentence of the report on a baseline of the workload's own
    changes_problem: bool = False  # reference outputs are computed with the same value (batch size, tiles)
    changes_facts: Callable[[WorkloadFacts, Value], WorkloadFacts] | None = None
    """The workload's facts as `usage` of all toggles beside `value` has to see them."""
    claims: tuple[str, ...] = ()  # published guides that promise a gain from it: ids of docs/claims.md
    source: str  # where the method is documented

    def offered(self, scope: Scope) -> tuple[Value, ...]:
        """The values to choose from in `scope`, baseline first, whether or not their requirements are met."""
        return self.offers(scope) if self.offers else tuple(self.values)

    def baseline(self, scope: Scope) -> Value:
        """The value that a baseline configuration has in `scope`."""
        return self.offered(scope)[0]

    def allowed_error(self, value: Value, workload: WorkloadFacts | None) -> float | None:
        """The relative output error allowed for `value`; None where fp32's own is."""
        limit = self.tolerance.get(value)
        if limit is None or isinstance(limit, float):
            return limit
        return None if workload is None else limit(workload)

    def unmet(self, scope: Scope, value: Value, configuration: Mapping[str, Value] | None = None) -> str | None:
        """The reason why `value` cannot run in `scope` and, if given, in `configuration`; None if it can."""
        others = configuration or {}
        reason = self.requires.get(value, Requirement()).unmet(scope)
        if reason is None and others:
            reason = self._unmet_beside(scope, value, others)
        for conflict in self.conflicts:
            if reason is None and conflict.value == value and others.get(conflict.other) in conflict.other_values:
                reason = f"cannot be combined with {conflict.other}={others[conflict.other]}: {conflict.reason}"
        if reason is None and self.check is not None:
            reason = self.check(scope, value, others)
        return reason

    def _unmet_beside(self, scope: Scope, value: Value, others: Mapping[str, Value]) -> str | None:
        for other, allowed in self.prerequisites.get(value, {}).items():
            if others.get(other) not in allowed:
                return f"needs {other}={' or '.join(map(str, allowed))}"
        for other, values in self.idle_when.items():
            if others.get(other) in values and value != self.baseline(scope):
                return f"does nothing beside {other}={others[other]}; only {self.baseline(scope)} is allowed there"
        return None
