"""Which algorithm updates the parameters, so that the implementations of each can be measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

import msgspec

from gpubench.report.model import Value
from gpubench.toggles.evidence import recorded
from gpubench.toggles.toggle import AS_BUILT, EvidenceResult, Requirement, Scope, Stage, Toggle
from gpubench.toggles.training.optimizer import is_training
from gpubench.workloads.optimizing import ALONE, LEARNING_RATE, PLAIN, Optimizer, lines

if TYPE_CHECKING:
    from gpubench.toggles.model_context import ModelContext
    from gpubench.workloads.optimizing import OptimizerFacts
    from gpubench.workloads.workload_facts import WorkloadFacts

Setting = TypeVar("Setting")

_STEP = "Optimizer.step#{kind}.step"  # what torch calls an optimizer's step in a trace
_ADAMS = ("AdamW", "Adam")
_OF_ADAM = ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize", "capturable")
_SETTINGS = {
    "AdamW": _OF_ADAM,
    "Adam": _OF_ADAM,
    "SGD": ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize"),
}
# A learning rate means something else to another algorithm. SGD with the momentum and rate of torch's examples.
_DEFAULTS: dict[str, dict[str, float]] = {
    "AdamW": {"lr": LEARNING_RATE},
    "Adam": {"lr": LEARNING_RATE},
    "SGD": {"lr": 0.01, "momentum": 0.9},
}


def _settings(old: str, new: str, given: Mapping[str, Setting], defaults: Mapping[str, Setting]) -> dict[str, Setting]:
    """Those of a `new` kind in place of an `old` one: what both have, and a rate that suits the new one."""
    kept = {name: value for name, value in given.items() if name in _SETTINGS[new]}
    if old == new or (old in _ADAMS and new in _ADAMS):
        return kept
    kept.pop("lr", None)
    return {**defaults, **kept}


def _of_kind(optimizers: Iterable[OptimizerFacts], value: Value) -> list[OptimizerFacts]:
    new = str(value)
    defaults = {name: repr(default) for name, default in _DEFAULTS[new].items()}
    return [
        msgspec.structs.replace(each, kind=new, settings=_settings(each.kind, new, each.settings, defaults))
        for each in optimizers
    ]


def changes_facts(facts: WorkloadFacts, value: Value) -> WorkloadFacts:
    """`facts` with optimizers of that kind."""
    if value == AS_BUILT:
        return facts
    return msgspec.structs.replace(facts, optimizers=_of_kind(facts.optimizers, value))


def apply(context: ModelContext, value: Value) -> None:
    """Makes each optimizer that the workload asks for one of that kind, before it is created."""
    if value == AS_BUILT:
        return
    new, asked = str(value), context.workload.optimizers or {ALONE: Optimizer()}
    optimizers = {
        name: dataclasses.replace(each, kind=new, settings=_settings(each.kind, new, each.settings, _DEFAULTS[new]))
        for name, each in asked.items()
    }
    context.workload = dataclasses.replace(context.workload, optimizers=optimizers)


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether optimizers of that kind alone are there, and took a step in the profiled step."""
    kinds = sorted({type(each).__name__ for each in context.optimizers.values()})
    words = f"the parameters are updated by {' and '.join(kinds) or 'no optimizer'}"
    if value == AS_BUILT:
        return EvidenceResult(True, words)
    trace = recorded(context)
    if isinstance(trace, EvidenceResult):
        return trace
    stepped = _STEP.format(kind=value) in trace.names
    words += f", {value} {'took a step' if stepped else 'took none'} in the profiled one"
    return EvidenceResult(kinds == [value] and stepped, words)


def _differs(kind: str) -> Requirement:
    def check(scope: Scope) -> str | None:
        """Not all are of that kind anyway."""
        same = all(each.kind == kind for each in scope.workload.optimizers)
        return f"is what the workload trains with, by {AS_BUILT}" if same else None

    return Requirement(check=check)


def _usage(value: Value, scope: Scope | None) -> str:
    if value == AS_BUILT:
        return "# optimizer_kind: what the workload trains with"
    return lines(_of_kind(scope.workload.optimizers if scope else [PLAIN], value), {})


OPTIMIZER_KIND = Toggle(
    name="optimizer_kind",
    summary="The algorithm of the optimizers, in place of the workload's own; it trains something else.",
    values={
        AS_BUILT: "what the workload asks for",
        "AdamW": "two averages for each parameter, and decay apart from the gradient",
        "Adam": "two averages for each parameter",
        "SGD": "one average for each parameter: momentum",
    },
    stage=Stage.OPTIMIZER,
    applies=is_training,
    requires={"AdamW": _differs("AdamW"), "Adam": _differs("Adam"), "SGD": _differs("SGD")},
    apply=apply,
    evidence=evidence,
    usage=_usage,
    changes_problem=True,
    changes_facts=changes_facts,
    source="PyTorch documentation: torch.optim, Algorithms",
)
