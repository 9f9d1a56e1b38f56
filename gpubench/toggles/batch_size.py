"""How many items one step processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpubench.report.model import Value
from gpubench.toggles.toggle import EvidenceResult, Integers, Scope, Stage, Toggle

if TYPE_CHECKING:
    from gpubench.toggles.model_context import ModelContext


def offers(scope: Scope) -> tuple[Value, ...]:
    """The workload's own batch size; other sizes must be given explicitly."""
    return (scope.workload.batch_size,)


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether the first dimension of every input tensor is the batch size."""
    sizes = {tensor.shape[0] for batch in context.batches for tensor in batch if tensor.dim()}
    if not sizes:
        return EvidenceResult(None, "no input tensor has a dimension to read")
    return EvidenceResult(sizes == {value}, f"the inputs' first dimension is {', '.join(map(str, sorted(sizes)))}")


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
