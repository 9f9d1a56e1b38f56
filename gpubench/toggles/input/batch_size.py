"""How many items one step processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpubench.report.model import Value
from gpubench.toggles.toggle import EvidenceResult, Integers, Scope, Stage, Toggle
from gpubench.workloads.batch import tensors, unlike

if TYPE_CHECKING:
    from gpubench.toggles.model_context import ModelContext


def offers(scope: Scope) -> tuple[Value, ...]:
    """The workload's own batch size; other sizes must be given explicitly."""
    return (scope.workload.batch_size,)


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether the first dimension of every input tensor, or the length of the list it is in, is the batch size."""
    if not any(tensor.dim() for batch in context.batches for tensor in tensors(batch)):
        return EvidenceResult(None, "no input tensor has a dimension to read")
    others = [tensor for batch in context.batches for _, tensor in unlike(batch, int(value))]
    if not others:
        return EvidenceResult(True, f"the inputs' first dimension is {value}")
    sizes = sorted({tensor.shape[0] for tensor in others if tensor.dim()})
    return EvidenceResult(False, f"the first dimension of inputs is {', '.join(map(str, sizes))}")


BATCH_SIZE = Toggle(
    name="batch_size",
    summary="Items per step; the workload's own batch size is the baseline.",
    values={},
    stage=Stage.PROBLEM,
    offers=offers,
    # 65536 is far above what fits or pays anywhere, and low enough to catch a typing error.
    integers=Integers(low=1, high=65536, meaning="the first dimension of every input"),
    evidence=evidence,
    usage=lambda value, _: f"batch_size = {value}  # of the inputs",
    changes_problem=True,
    sets_batch_size=True,
    claims=("vae-guide", "cytodl", "bf16-guide"),
    source="the workload's own inputs",
)
