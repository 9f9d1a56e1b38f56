"""How AdamW updates the parameters: one at a time, in grouped calls, or in one fused kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpubench.report.model import Value
from gpubench.text import plural
from gpubench.toggles.evidence import recorded
from gpubench.toggles.model_context import LEARNING_RATE
from gpubench.toggles.printed import run_lines
from gpubench.toggles.toggle import EvidenceResult, Requirement, Scope, Stage, Toggle

if TYPE_CHECKING:
    from gpubench.measure.trace import Trace
    from gpubench.toggles.model_context import ModelContext

_FLAGS = {
    "for-loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True, "fused": False},
    "fused": {"foreach": False, "fused": True},
}
# An operator that only this implementation of AdamW calls. `aten::_foreach_add_` would not do: the fused one uses it
# for its step counters, and the gradient scaler calls `_foreach_` operators too.
_OPERATORS = {"for-loop": "aten::addcdiv_", "foreach": "aten::_foreach_addcdiv_", "fused": "aten::_fused_adamw_"}

# In the names of the GPU kernels: of both grouped implementations, and of the fused one alone.
_GROUPED, _FUSED = "multi_tensor_apply", "FusedAdam"


def is_training(scope: Scope) -> str | None:
    """Applies to training."""
    return None if scope.workload.mode == "training" else "inference has no optimizer"


def apply(context: ModelContext, value: Value) -> None:
    """Creates AdamW over the parameters in their final dtype and layout."""
    names = run_lines(_lines(value, context.learning_rate), model=context.model)
    context.optimizer = names["optimizer"]


def _lines(value: Value, learning_rate: float) -> str:
    flags = "".join(f", {name}={flag}" for name, flag in _FLAGS[str(value)].items())
    return f"optimizer = torch.optim.AdamW(model.parameters(), lr={learning_rate:g}{flags})"


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether the profiled step ran the implementation's own operators and, on a GPU, its kernels."""
    if context.optimizer is None:
        return EvidenceResult(False, "the context has no optimizer")
    trace = recorded(context)
    if isinstance(trace, EvidenceResult):
        return trace
    # A compiled optimizer would show none of them; gpubench does not compile it.
    names = [operator.name for operator in trace.operators]
    ran = next((each for each in ("fused", "foreach", "for-loop") if _OPERATORS[each] in names), None)
    words = "no operator of an AdamW update"
    if ran:
        words = f"{plural(names.count(_OPERATORS[ran]), 'call')} of {_OPERATORS[ran]}"
    group = context.optimizer.param_groups[0]
    words += f" in the step; {type(context.optimizer).__name__} has foreach={group.get('foreach')} "
    result = EvidenceResult(ran == value, f"{words}and fused={group.get('fused')}")
    return _kernels_too(trace, str(value), result) if result.took_effect and context.device.type == "cuda" else result


def _kernels_too(trace: Trace, value: str, result: EvidenceResult) -> EvidenceResult:
    # On a GPU the operator is not enough: if parameters differ in dtype or device, torch's `_foreach_` operators
    # silently process them one by one.
    if not trace.kernels:
        return EvidenceResult(None, f"{result.detail}; no GPU kernel was recorded")
    grouped = [kernel.name for kernel in trace.kernels if _GROUPED in kernel.name]
    fused = sum(_FUSED in name for name in grouped)
    words = f"{result.detail}; {fused} fused and {len(grouped) - fused} other {_GROUPED} kernels ran"
    ran = {"fused": fused > 0, "foreach": len(grouped) > fused, "for-loop": True}[value]
    return EvidenceResult(ran, words)


def offers(scope: Scope) -> tuple[Value, ...]:
    """All values; first torch's own choice for parameters on the device."""
    first = ("foreach",) if scope.device.kind == "cuda" else ()
    return tuple(dict.fromkeys((*first, *OPTIMIZER.values)))


OPTIMIZER = Toggle(
    name="optimizer",
    summary="The implementation of AdamW.",
    values={
        "for-loop": "several small kernels for each parameter",
        "foreach": "a few calls over all parameters at once, with memory for intermediate lists",
        "fused": "the whole update in one kernel",
    },
    stage=Stage.OPTIMIZER,
    applies=is_training,
    offers=offers,
    requires={"fused": Requirement(torch_version=(2, 4), why="fused AdamW runs on a CPU since torch 2.4")},
    apply=apply,
    evidence=evidence,
    usage=lambda value, _: _lines(value, LEARNING_RATE),
    claims=("cytodl",),
    source="PyTorch documentation: torch.optim, foreach and fused implementations",
)
