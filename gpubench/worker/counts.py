"""What a profiled step did, counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from gpubench.report.model import StepCounts
from gpubench.toggles import evidence as read

if TYPE_CHECKING:
    from gpubench.measure.trace import Trace
    from gpubench.toggles.model_context import ModelContext
    from gpubench.toggles.toggle import EvidenceResult

DIGITS = 6  # of shares: sums of FLOPs divide the same way everywhere


def step_counts(context: ModelContext, compiled: EvidenceResult | None = None) -> StepCounts:
    """The counts of the context's trace, and what the compiler counted."""
    counts = StepCounts() if context.trace is None else _of_trace(context, context.trace)
    if compiled is None:
        return counts
    return replace(counts, frames_compiled=compiled.frames_compiled, recompiles=compiled.recompiles)


def _of_trace(context: ModelContext, trace: Trace) -> StepCounts:
    counts = StepCounts(bytes_allocated=trace.allocated_bytes)
    if not read.replays_graph(trace):
        flops, work = _work(trace)
        counts = replace(counts, operators=_operators(trace), flops=flops, work=work)
    if context.device.type != "cuda" or read.is_blind(context, trace):
        return counts
    return replace(
        counts,
        kernels=None if trace.lost else len(trace.kernels),
        copies_to_device=None if trace.lost else sum("HtoD" in name for name in trace.copies),
        synchronizations=sum("Synchronize" in name for name in trace.cuda_calls),
    )


def _operators(trace: Trace) -> int:
    # The profiler notes functions of autograd and of TorchScript like operators, but these have a namespace.
    return sum("::" in operator.name for operator in trace.operators)


def _work(trace: Trace) -> tuple[int | None, dict[str, float]]:
    """The FLOPs of the step, and the share of each dtype among them."""
    by_dtype: dict[str, int] = {}
    for operator in read.compute_operators(trace):
        if operator.flops is None:
            return None, {}
        dtype = read.operator_dtype(operator) or "other"
        by_dtype[dtype] = by_dtype.get(dtype, 0) + operator.flops
    total = sum(by_dtype.values())
    shares = {dtype: round(flops / total, DIGITS) for dtype, flops in sorted(by_dtype.items())} if total else {}
    return total, shares
