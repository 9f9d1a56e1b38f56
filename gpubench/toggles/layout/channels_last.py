"""The memory layout of activations and weights: channels innermost (NHWC, NDHWC) or outermost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpubench.report.model import Value
from gpubench.toggles import evidence as read
from gpubench.toggles import kernels
from gpubench.toggles.printed import each_input, run_lines
from gpubench.toggles.toggle import EvidenceResult, Scope, Stage, Toggle
from gpubench.workloads.batch import is_flat

if TYPE_CHECKING:
    import torch

    from gpubench.measure.trace import Trace
    from gpubench.toggles.model_context import ModelContext


_NAMES = ("nhwc", "ndhwc")


def has_convolutions(scope: Scope) -> str | None:
    """Applies where the model has 2-D or 3-D convolutions."""
    if not {2, 3} & set(scope.workload.convolution_dimensions):
        return f"workload {scope.workload.name} has no 2-D or 3-D convolution"
    return None


def _memory_format(dimensions: int) -> torch.memory_format | None:
    import torch

    return {4: torch.channels_last, 5: torch.channels_last_3d}.get(dimensions)


def _weights(context: ModelContext) -> list[torch.Tensor]:
    """Parameters and buffers of a convolution's dimensions, whatever holds them, but those that are no convolution's.

    Read as they are stored: a parametrized module (spectral norm) computes anew what its `weight` is asked for.
    """
    others = context.facts.unconvolved if context.facts else []
    named = (*context.model.named_parameters(), *context.model.named_buffers())
    return [weight for name, weight in named if _memory_format(weight.dim()) and name not in others]


def apply(context: ModelContext, value: Value) -> None:
    """Converts each convolution's weights and each input to the channels-last format for its number of dimensions."""
    if value == "off":
        return
    unconvolved = context.facts.unconvolved if context.facts else []
    lines = _lines(unconvolved, nested=not all(map(is_flat, context.batches)))
    context.change_batches(lambda batch: run_lines(lines, model=context.model, inputs=batch)["inputs"])


def _lines(unconvolved: Sequence[str], *, nested: bool) -> str:
    change = "x.contiguous(memory_format=formats[x.dim()]) if x.dim() in formats else x"
    but = f" and name not in {list(unconvolved)}" if unconvolved else ""
    return f"""formats = {{4: torch.channels_last, 5: torch.channels_last_3d}}  # by the number of dimensions
for name, weight in [*model.named_parameters(), *model.named_buffers()]:
    if weight.dim() in formats{but}:
        weight.data = weight.data.contiguous(memory_format=formats[weight.dim()])
{each_input(change, nested)}"""


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether the convolutions of a profiled step ran on channels-last activations."""
    trace = read.recorded(context)
    if isinstance(trace, EvidenceResult):
        return trace
    result = _from_trace(context, trace, value)
    if context.device.type != "cuda":  # oneDNN's choice of algorithm is in no trace
        return result
    return dataclasses.replace(result, detail=f"{result.detail}; {kernels.algorithms(trace)}")


def _from_trace(context: ModelContext, trace: Trace, value: Value) -> EvidenceResult:
    # The layout they were computed in decides, and the inputs tell how often torch had to reorder.
    ran = read.convolutions(trace)
    told = [each for each in ran if each.computed]
    hits = [each.computed for each in told].count("channels_last")
    arrivals = [each.arrived for each in ran if each.arrived]
    arrived = arrivals.count("channels_last")
    work = {id(each.operator) for each in told if each.computed == "channels_last"}
    share = read.share([each.operator for each in told], lambda operator: id(operator) in work)
    words = f"{hits} of {len(told)} convolutions"
    if 0 < hits < len(told):
        words += f", {share:.0%} of their work,"
    words += f" ran in channels-last; {arrived} of {len(arrivals)} inputs already were"
    if value == "off":
        # `off` only means that nothing was converted. On a CPU inductor itself picks channels-last for convolutions.
        words = words if told else f"no tensor has a recognizable layout: {words}"
        chosen_by = "the compiler chose" if context.compiled else "the model itself uses"
        return EvidenceResult(True, f"{words}; {chosen_by} that layout" if hits else words)
    hides = read.replays_graph(trace) or read.is_blind(context, trace)
    if not told or (hides and share < read.MAJORITY):
        return _from_kernels(context, trace, words)
    if arrived < hits:
        words += " and the others are reordered at each call"
    return EvidenceResult(share >= read.MAJORITY, f"{words} (at least {read.MAJORITY:.0%} required)")


def _from_kernels(context: ModelContext, trace: Trace, words: str) -> EvidenceResult:
    weights = [read.layout(weight.shape, weight.stride()) for weight in _weights(context)]
    laid, told = weights.count("channels_last"), len(weights) - weights.count(None)
    # Only kernels that compute: those that reorder NCHW to NHWC have both in their names.
    named = sum(any(part in kernel.name.lower() for part in _NAMES) for kernel in kernels.compute_kernels(trace))
    if told and laid < read.MAJORITY * told:
        return EvidenceResult(False, f"{words}; {laid} of the model's {told} weights are channels-last")
    hidden = "no tensor has a recognizable layout"
    if read.replays_graph(trace):
        hidden = "a CUDA graph hides them"
    elif read.is_blind(context, trace):
        hidden = read.BLIND
    return EvidenceResult(
        True if told and named else None,
        f"{words}: {hidden}; {laid} of the model's {told} weights with a recognizable layout are "
        f"channels-last and {named} compute kernels have NHWC in their names",
    )


CHANNELS_LAST = Toggle(
    name="channels_last",
    summary="Weights and inputs of 2-D and 3-D convolutions with their channels innermost in memory.",
    values={
        "off": "the model's own layout, usually channels outermost (NCHW, NCDHW)",
        "on": "channels innermost (NHWC, NDHWC): tensor cores and oneDNN use it without reordering",
    },
    stage=Stage.LAYOUT,
    applies=has_convolutions,
    apply=apply,
    evidence=evidence,
    usage=lambda value, scope: (
        _lines(scope.workload.unconvolved if scope else [], nested=scope is not None and scope.workload.nested_inputs)
        if value == "on"
        else "# channels_last: off, so model and inputs stay as they are"
    ),
    claims=("cytodl", "vae-guide"),
    source="PyTorch tutorial: Channels Last Memory Format in PyTorch",
)
