"""Whether and how the gradients' norm is clipped before each update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from gpubench.report.model import Value
from gpubench.text import plural
from gpubench.toggles.evidence import recorded
from gpubench.toggles.toggle import AS_BUILT, EvidenceResult, Scope, Stage, Toggle
from gpubench.workloads.optimizing import facts_of

if TYPE_CHECKING:
    from gpubench.measure.trace import Trace
    from gpubench.toggles.model_context import ModelContext

_NORM = 1.0  # of optimizers that have none: what language models are mostly trained with
_GROUPED, _ONE = "aten::_foreach_norm", "aten::linalg_vector_norm"
_KERNEL = "lpnorm"  # in the names of the grouped operator's kernels on a GPU, in lower case
_FOREACH = {"foreach": True, "for-loop": False}


def has_plain_step(scope: Scope) -> str | None:
    """Applies to training whose step is not the workload's own."""
    if scope.workload.mode != "training":
        return "inference has no gradients"
    return "the workload's own train_step clips as it likes" if scope.workload.own_train_step else None


def apply(context: ModelContext, value: Value) -> None:
    """Sets how `update_parameters` clips."""
    if value == "none":
        context.clips.clear()
    elif value != AS_BUILT:
        names = [each.name for each in facts_of(context.workload.optimizers)]
        context.clips = {name: context.clips.get(name, _NORM) for name in names}
        context.clip_arguments["foreach"] = _FOREACH[str(value)]


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether the step computed the norm of all gradients, and by which operator that of each."""
    trace = recorded(context)
    if isinstance(trace, EvidenceResult):
        return trace
    if not context.optimizers:
        return EvidenceResult(value == AS_BUILT, "the context has no optimizer")
    counts = _gradients(context)
    clipped = sum(_is_norm_of(trace, count) for count in counts.values())
    grouped = sum(operator.name == _GROUPED for operator in trace.operators)
    words = f"the step took the norm of all gradients of {clipped} of {plural(len(counts), 'optimizer')}"
    words += f", that of each by {_GROUPED if grouped else _ONE}" if clipped else ""
    if value == AS_BUILT:
        return EvidenceResult(True, words)
    if value == "none":
        return EvidenceResult(not clipped and not grouped, words)
    if grouped and trace.kernels:  # without its kernels torch has worked on the gradients one by one
        grouped = sum(_KERNEL in kernel.name.lower() for kernel in trace.kernels)
        words += f" in {plural(grouped, 'kernel')} for many"
    return EvidenceResult(clipped == len(counts) and (grouped > 0) == _FOREACH[str(value)], words)


def _gradients(context: ModelContext) -> Mapping[str, int]:
    """How many gradients each optimizer has."""
    return {
        name: sum(each.grad is not None for group in optimizer.param_groups for each in group["params"])
        for name, optimizer in context.optimizers.items()
    }


def _is_norm_of(trace: Trace, gradients: int) -> bool:
    """Whether the step took the norm of so many norms, which models of their own hardly do."""
    return any(operator.name == _ONE and operator.shapes[:1] == ((gradients,),) for operator in trace.operators)


def _usage(value: Value, _: Scope | None) -> str:
    if value in (AS_BUILT, "none"):
        return "# clip_grad: gradients are not clipped" if value == "none" else "# clip_grad: as the workload asks for"
    return f"""# clip_grad: after backward and before optimizer.step(), with {_NORM} or the norm that was there:
# torch.nn.utils.clip_grad_norm_(model.parameters(), {_NORM}, foreach={_FOREACH[str(value)]})"""


CLIP_GRAD = Toggle(
    name="clip_grad",
    summary="Whether the norm of the gradients is clipped, and how it is computed.",
    values={
        AS_BUILT: "what the workload asks for, by torch's own choice of an implementation",
        "none": "gradients as they are",
        "foreach": "clipped by a few calls over all gradients, to 1 where the workload names no norm",
        "for-loop": "the same by several small calls for each gradient",
    },
    stage=Stage.OPTIMIZER,
    applies=has_plain_step,
    apply=apply,
    evidence=evidence,
    usage=_usage,
    changes_problem=True,
    claims=("mmrec-cpu",),
    source="PyTorch documentation: torch.nn.utils.clip_grad_norm_",
)
