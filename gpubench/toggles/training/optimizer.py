"""How the optimizers update the parameters: one at a time, in grouped calls, or in one fused kernel."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from gpubench.report.model import Value
from gpubench.text import plural
from gpubench.toggles.evidence import recorded, replays_graph
from gpubench.toggles.toggle import AS_BUILT, EvidenceResult, Requirement, Scope, Stage, Toggle
from gpubench.workloads.optimizing import CAPTURABLE, FUSED, PLAIN, lines, make_optimizers

if TYPE_CHECKING:
    from gpubench.measure.trace import Trace
    from gpubench.toggles.model_context import ModelContext

_FLAGS = {
    "for-loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True, "fused": False},
    "fused": {"foreach": False, "fused": True},
    "capturable": {"foreach": True, "fused": False, "capturable": True},
}
# What only this implementation calls. For most `aten::_foreach_add_` would not do: the fused ones use it for their step
# counters, and the gradient scaler and clipping call `_foreach_` operators too. SGD has no other.
_UPDATE = {"SGD": "add_"}
_DIVIDE = "addcdiv_"

# In the names of the GPU kernels: of both grouped implementations, and of the fused one alone.
_GROUPED, _FUSED = "multi_tensor_apply", re.compile("Fused(Adam|Sgd|SGD|Adagrad)|fused_(adam|sgd|adagrad)")


def is_training(scope: Scope) -> str | None:
    """Applies to training."""
    return None if scope.workload.mode == "training" else "inference has no optimizer"


def apply(context: ModelContext, value: Value) -> None:
    """Creates the optimizers over the parameters in their final dtype and layout."""
    asked = context.workload.optimizers
    context.optimizers = make_optimizers(asked, _FLAGS[str(value)], context.model)
    schedules = {name: each.schedule for name, each in asked.items()}
    context.schedulers = [
        schedule(optimizer) for name, optimizer in context.optimizers.items() if (schedule := schedules.get(name))
    ]


def _operators(kind: str) -> dict[str, str]:
    update = _UPDATE.get(kind, _DIVIDE)
    return {
        "fused": f"aten::_fused_{kind.lower()}_",
        "foreach": f"aten::_foreach_{update}",
        "for-loop": f"aten::{update}",
    }


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether the profiled step ran the implementation's own operators and, on a GPU, its kernels."""
    if not context.optimizers:
        return EvidenceResult(False, "the context has no optimizer")
    trace = recorded(context)
    if isinstance(trace, EvidenceResult):
        return trace
    found = [
        _ran(kind, trace, value) for kind in dict.fromkeys(type(each).__name__ for each in context.optimizers.values())
    ]
    words = f"{' and '.join(words for _, words in found)} in the step"
    for each in context.optimizers.values():
        group = each.param_groups[0]
        words += f"; {type(each).__name__} has foreach={group.get('foreach')} and fused={group.get('fused')}"
    effects = [effect for effect, _ in found]
    if None in effects and False not in effects:
        return _in_a_graph(context, trace, str(value), words)
    result = EvidenceResult(all(effects), words)
    if result.took_effect and value == "capturable":
        result = _capturable(context, words)
    return _kernels_too(trace, str(value), result) if result.took_effect and context.device.type == "cuda" else result


def _ran(kind: str, trace: Trace, value: Value) -> tuple[bool | None, str]:
    """Whether optimizers of that kind ran as `value` says, and which operator tells it; None in a CUDA graph."""
    # A compiled optimizer would show none of them; gpubench does not compile it.
    names, operators = [operator.name for operator in trace.operators], _operators(kind)
    ran = next((each for each, operator in operators.items() if operator in names), None)
    if ran is None:
        return None if replays_graph(trace) else False, f"no operator of an {kind} update"
    wanted = "foreach" if value == "capturable" else value
    return ran == wanted, f"{plural(names.count(operators[ran]), 'call')} of {operators[ran]}"


def _capturable(context: ModelContext, words: str) -> EvidenceResult:
    """Whether the optimizers count their steps on the device, where a CUDA graph can; else Python does."""
    kept = [state for each in context.optimizers.values() for state in each.state.values()]
    places = {str(state["step"].device.type) for state in kept if "step" in state}
    where = " and ".join(sorted(places)) or "nowhere"
    return EvidenceResult(places == {context.device.type}, f"{words}; the steps are counted on {where}")


def _in_a_graph(context: ModelContext, trace: Trace, value: str, words: str) -> EvidenceResult:
    """What kernels alone tell: the fused ones by their names, and grouped ones, which clipping has too."""
    fused = sum(bool(_FUSED.search(kernel.name)) for kernel in trace.kernels)
    grouped = sum(_GROUPED in kernel.name for kernel in trace.kernels)
    words += f"; a CUDA graph hides them, and {fused} fused and {grouped - fused} other {_GROUPED} kernels ran in it"
    if not trace.kernels:
        return EvidenceResult(None, words)
    if value == "fused" or fused:
        return EvidenceResult(value == "fused" and fused > 0, words)
    if value == "capturable":
        return _capturable(context, words) if grouped else EvidenceResult(False, words)
    if value == "foreach":
        return EvidenceResult(grouped > 0, words)
    return EvidenceResult(None if grouped else True, words)


def _kernels_too(trace: Trace, value: str, result: EvidenceResult) -> EvidenceResult:
    # On a GPU the operator is not enough: if parameters differ in dtype or device, torch's `_foreach_` operators
    # silently process them one by one.
    if not trace.kernels:
        return EvidenceResult(None, f"{result.detail}; no GPU kernel was recorded")
    grouped = [kernel.name for kernel in trace.kernels if _GROUPED in kernel.name]
    fused = sum(bool(_FUSED.search(name)) for name in grouped)
    words = f"{result.detail}; {fused} fused and {len(grouped) - fused} other {_GROUPED} kernels ran"
    ran = {"fused": fused > 0, "foreach": len(grouped) > fused, "capturable": len(grouped) > fused}.get(value, True)
    return EvidenceResult(ran, words)


def _has_it(scope: Scope, value: Value, configuration: Mapping[str, Value]) -> str | None:
    """Whether each optimizer has such an implementation, of the kind that the configuration makes it."""
    kind = configuration.get("optimizer_kind", AS_BUILT)
    kinds = [each.kind if kind == AS_BUILT else str(kind) for each in scope.workload.optimizers]
    having = {"fused": FUSED, "capturable": CAPTURABLE}.get(str(value), kinds)
    without = [each for each in kinds if each not in having]
    return f"is not there for {without[0]}" if without else None


def offers(scope: Scope) -> tuple[Value, ...]:
    """All values; first torch's own choice for parameters on the device."""
    first = ("foreach",) if scope.device.kind == "cuda" else ()
    return tuple(dict.fromkeys((*first, *OPTIMIZER.values)))


OPTIMIZER = Toggle(
    name="optimizer",
    summary="The implementation of the optimizers' update, AdamW's where the workload names no other.",
    values={
        "for-loop": "several small kernels for each parameter",
        "foreach": "a few calls over all parameters at once, with memory for intermediate lists",
        "fused": "the whole update in one kernel",
        "capturable": "like foreach, and nothing of it on the host: a CUDA graph could hold it",
    },
    stage=Stage.OPTIMIZER,
    applies=is_training,
    offers=offers,
    requires={
        "fused": Requirement(torch_version=(2, 4), why="fused optimizers run on a CPU since torch 2.4"),
        "capturable": Requirement(device_kinds=("cuda",), why="it is for CUDA graphs"),
    },
    check=_has_it,
    after=("optimizer_kind",),
    apply=apply,
    evidence=evidence,
    usage=lambda value, scope: lines(scope.workload.optimizers if scope else [PLAIN], _FLAGS[str(value)]),
    claims=("cytodl",),
    source="PyTorch documentation: torch.optim, foreach and fused implementations",
)
