"""How a batch gets from the host's memory to the GPU: from pageable or pinned memory, or a step ahead."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gpubench.report.model import Value
from gpubench.text import plural
from gpubench.toggles.evidence import BLIND, is_blind, recorded
from gpubench.toggles.printed import run_lines
from gpubench.toggles.toggle import EvidenceResult, Scope, Stage, Toggle
from gpubench.workloads.batch import map_tensors, tensors

if TYPE_CHECKING:
    from gpubench.measure.trace import Trace
    from gpubench.toggles.model_context import ModelContext

_STEPS = "transfer.steps"  # note: {"ahead": steps whose batch had been copied in the step before, "late": others}

_TO_DEVICE = """from torch.utils._pytree import tree_leaves, tree_map_only

def to_device(batch):  # pinned before: x.pin_memory(), or pin_memory=True among the DataLoader's arguments
    return tree_map_only(torch.Tensor, lambda x: x.to(device, non_blocking=True), batch)"""

_AHEAD = """

copies = torch.cuda.Stream(device)  # beside the one that computes

def copy_ahead(batch):
    with torch.cuda.stream(copies):
        return to_device(batch), copies.record_event()

def arrived(ahead):
    batch, copied = ahead
    here = torch.cuda.current_stream(device)
    here.wait_event(copied)
    for x in tree_leaves(batch):
        if isinstance(x, torch.Tensor):
            x.record_stream(here)  # else a later copy may get its memory while this stream still reads it
    return batch
# before the loop: ahead = copy_ahead(first batch)
# in each step, before the forward pass: batch = arrived(ahead), then ahead = copy_ahead(next batch)"""

_USAGE: dict[Value, str] = {
    "pageable": "# transfer: x.to(device)",
    "pinned": f"{_TO_DEVICE}\n# in each step: batch = to_device(batch)",
    "prefetch": _TO_DEVICE + _AHEAD,
}


def on_gpu(scope: Scope) -> str | None:
    """Applies to a CUDA device."""
    return None if scope.device.kind == "cuda" else f"nothing is copied to {scope.device.name}"


def apply(context: ModelContext, value: Value) -> None:
    """Pins the batches and lets a step copy its own, or the next one, without waiting."""
    if value == "pageable":
        return
    lines = run_lines(_USAGE[value], device=context.device)
    fetch, count = context.step.fetch, len(context.batches)
    if context.fetched_anew:
        context.loading["pin_memory"] = True
    else:
        context.batches = [_pin(batch) for batch in context.batches]
    steps = context.notes[_STEPS] = {"ahead": 0, "late": 0}
    if value == "pinned":

        def copied(index: int) -> Any:
            steps["late"] += 1
            batch = fetch(index)
            return lines["to_device"](batch if index < count else _pin(batch))  # those of checks come as they are

        context.step.fetch = copied
    else:
        context.step.fetch = _ahead(fetch, count, lines["copy_ahead"], lines["arrived"], steps)


def _pin(batch: Any) -> Any:
    return map_tensors(lambda tensor: tensor if tensor.is_pinned() else tensor.pin_memory(), batch)


def _ahead(
    fetch: Callable[[int], Any],
    count: int,
    copy_ahead: Callable[[Any], Any],
    arrived: Callable[[Any], Any],
    steps: dict[str, int],
) -> Callable[[int], Any]:
    """A `fetch` that begins to copy the batch after this one; the first `count` are timed, in turn."""
    waiting: dict[int, Any] = {}  # of the one batch that is on its way, by its index

    def copied(index: int) -> Any:
        if index >= count:  # one that is never timed, of a check
            return arrived(copy_ahead(_pin(fetch(index))))
        steps["ahead" if index in waiting else "late"] += 1
        ahead = waiting.pop(index) if index in waiting else copy_ahead(fetch(index))
        waiting.clear()
        batch, after = arrived(ahead), (index + 1) % count
        waiting[after] = copy_ahead(fetch(after))
        return batch

    return copied


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether the profiled step copied its batch from such memory and, for `prefetch`, beside the kernels."""
    trace = recorded(context)
    if isinstance(trace, EvidenceResult):
        return trace
    steps = context.notes.get(_STEPS)
    words = _copies(trace)
    if value == "pageable":  # the workload's own code may copy as it likes
        return EvidenceResult(steps is None, words)
    if steps is None:
        return EvidenceResult(False, f"{words}; no batch was pinned")
    if is_blind(context, trace):
        return EvidenceResult(None, BLIND)
    copies = _from_host(trace)
    pinned = [stream for name, stream in copies if "Pinned" in name]
    batch = sum(tensor.numel() > 0 for tensor in tensors(context.batches[0]))
    if copies and not any("Pinned" in name or "Pageable" in name for name, _ in copies):  # ROCm's names
        return EvidenceResult(None, f"{words}, which do not tell the kind of memory")
    if len(pinned) < batch:
        return EvidenceResult(False, f"{words}; the batch has {plural(batch, 'tensor')}")
    if value == "pinned":
        return EvidenceResult(steps["ahead"] == 0, words)
    if None in pinned or None in trace.kernel_streams or not trace.kernel_streams:
        return EvidenceResult(None, f"{words}; the profiler did not tell the streams")
    beside = sum(stream not in trace.kernel_streams for stream in pinned)
    words += f"; {beside} of those of pinned memory on a stream without kernels"
    words += f"; in {steps['ahead']} of {sum(steps.values())} steps the batch had been copied in the step before"
    return EvidenceResult(beside >= batch and steps["ahead"] > 0, words)


def _from_host(trace: Trace) -> list[tuple[str, int | None]]:
    streams = trace.copy_streams or (None,) * len(trace.copies)
    found = zip(trace.copies, streams, strict=True)
    return [(name, stream) for name, stream in found if "HtoD" in name or "HostToDevice" in name]


def _copies(trace: Trace) -> str:
    names = [name for name, _ in _from_host(trace)]
    kinds = {kind: sum(kind in name for name in names) for kind in ("Pageable", "Pinned")}
    parts = ", ".join(f"{count} of {kind.lower()} memory" for kind, count in kinds.items() if count)
    return f"{plural(len(names), 'copy', 'copies')} from the host in the step{f', {parts}' if parts else ''}"


_FROM_THE_HOST = {"pipeline": ("host", "loader")}

TRANSFER = Toggle(
    name="transfer",
    summary="How a batch that begins in the host's memory gets to the GPU.",
    values={
        "pageable": "from ordinary memory, in its step",
        "pinned": "from memory that stays in place, in its step; the host does not wait for it",
        "prefetch": "from such memory, in the step before, on a stream beside the one that computes",
    },
    stage=Stage.LAYOUT,  # the batches have their final dtype and layout, in which they are pinned
    applies=on_gpu,
    prerequisites={"pinned": _FROM_THE_HOST, "prefetch": _FROM_THE_HOST},
    after=("channels_last",),
    apply=apply,
    evidence=evidence,
    usage=lambda value, _: _USAGE[value],
    claims=("vae-guide", "bf16-guide"),
    source="PyTorch documentation: CUDA semantics, Use pinned memory buffers; torch.Tensor.record_stream",
)
