"""Attention in slices: a part of the heads or of the batch after the other, so that fewer scores are in memory."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from unittest import mock

from gpubench.report.model import Value
from gpubench.text import plural
from gpubench.toggles import evidence as read
from gpubench.toggles.attention.replaced import NAME, WHERE, counted, has_attention, replace
from gpubench.toggles.eager_pass import run_eagerly
from gpubench.toggles.printed import run_lines
from gpubench.toggles.toggle import EvidenceResult, Stage, Toggle

if TYPE_CHECKING:
    from gpubench.measure.trace import Trace
    from gpubench.toggles.model_context import ModelContext

_NAMES = "attention_slices.names"  # note: what the lines define
_CALLED = "aten::scaled_dot_product_attention"
_FUSED = re.compile(
    r"aten::_scaled_dot_product_(flash|efficient|cudnn|fused)\w*(?<!_backward)"
    r"|aten::_(flash|efficient)_attention_forward|xformers\w*::\w+"
)


def _lines(value: Value) -> str:
    if value == "off":
        return "# attention_slices: off"
    return f"""whole_attention = {NAME}


def sliced_attention(query, key, value, attn_mask=None, *others, slices={value}, dimension=-3, **named):
    tensors = query, key, value, attn_mask
    if slices < 2 or dimension < -4 or query.is_nested:  # -3: heads, -4: batch
        return whole_attention(*tensors, *others, **named)
    sizes = [x.shape[dimension] if x is not None and x.dim() >= -dimension else 1 for x in tensors]
    shared = [size for size in sizes if size > 1]  # what has one is the same for every slice
    least = min(shared) if shared else 1  # with grouped queries the heads of key and value
    count = min(slices, least)
    ends = [part * least // count for part in range(1, count)]
    cut = [
        x.tensor_split([end * (size // least) for end in ends], dimension) if size > 1 and count > 1 else [x] * count
        for x, size in zip(tensors, sizes)
    ]
    done = [
        sliced_attention(*parts, *others, slices=slices // count, dimension=dimension - 1, **named)
        for parts in zip(*cut)
    ]
    return torch.cat(done, dimension) if count > 1 else done[0]


{WHERE}
{NAME} = sliced_attention"""


def apply(context: ModelContext, value: Value) -> None:
    """Puts a function that slices in the place of torch's, also where modules have imported that by name."""
    if value == "off":
        return
    import torch

    whole = torch.nn.functional.scaled_dot_product_attention
    names = context.notes[_NAMES] = run_lines(_lines(value))
    replace(whole, names["sliced_attention"])


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether the profiled step ran attention as often as the slices of its calls, counted in one more pass, ask for.

    Compiled code that takes attention apart and CUDA graphs show no call of it; the pass then speaks for them.
    """
    trace = read.recorded(context)
    if isinstance(trace, EvidenceResult):
        return trace
    ran = _attentions(trace)
    words = f"attention ran {ran} times in the step" if ran else "no operator of attention is visible in the step"
    if value == "off":
        return EvidenceResult(True, words)
    if _NAMES not in context.notes:
        return EvidenceResult(False, f"{words}; nothing slices it")
    calls, slices, problem = _count(context)
    if problem:
        return EvidenceResult(None, f"{words}; {problem}")
    words += f"; in one more pass {plural(calls, 'call')} of scaled_dot_product_attention made {slices} slices"
    hidden = (context.compiled and not ran) or read.replays_graph(trace) or read.is_blind(context, trace)
    return EvidenceResult(slices > calls and (ran >= slices or hidden), words)


def _attentions(trace: Trace) -> int:
    names = [operator.name for operator in trace.operators]
    return max(names.count(_CALLED), sum(bool(_FUSED.fullmatch(name)) for name in names))


def _count(context: ModelContext) -> tuple[int, int, str]:
    """Calls and slices of one more pass, in eager code, and why there was none."""
    names, slices = context.notes[_NAMES], []
    whole = names["whole_attention"]

    def counting(*arguments: Any, **named: Any) -> Any:
        slices.append(1)
        return whole(*arguments, **named)

    with mock.patch.dict(names, whole_attention=counting), counted(names["sliced_attention"]) as calls:
        problem = run_eagerly(context)
    return len(calls), len(slices), problem


ATTENTION_SLICES = Toggle(
    name="attention_slices",
    summary="scaled_dot_product_attention in slices of its heads and batch, one after the other.",
    values={
        "off": "all heads of the whole batch at once",
        2: "two slices, or as many as there are heads and items of the batch to divide",
        4: "four slices at most",
        8: "eight slices at most",
    },
    stage=Stage.MODEL,
    after=("xformers_attention",),
    magnitude=lambda value: 1 if value == "off" else int(value),
    applies=has_attention,
    apply=apply,
    evidence=evidence,
    usage=lambda value, _: _lines(value),
    claims=("gpu-guide",),
    source="Hugging Face Diffusers documentation: Reduce memory usage, attention slicing (enable_attention_slicing)",
)
