"""xFormers' memory-efficient attention in the place of torch's scaled_dot_product_attention."""

from __future__ import annotations

import importlib.util
import re
from typing import TYPE_CHECKING

from gpubench.report.model import Value
from gpubench.text import plural
from gpubench.toggles import evidence as read
from gpubench.toggles.attention.replaced import NAME, WHERE, has_attention, replace
from gpubench.toggles.printed import run_lines
from gpubench.toggles.toggle import EvidenceResult, Requirement, Scope, Stage, Toggle

if TYPE_CHECKING:
    from gpubench.measure.trace import Trace
    from gpubench.toggles.model_context import ModelContext

_ON = "xformers_attention.on"  # note: the function that took torch's place
# What xFormers calls: operators and autograd functions of its own, and the operators that torch has below its function.
_THEIRS = re.compile(r"xformers\w*::\w+|flash_attn_3::\w+|_fMHA\w*|aten::_(flash|efficient)_attention_forward")
_TORCHS = re.compile(r"aten::_?scaled_dot_product_(?!\w*backward)\w+")
_KERNEL = re.compile(r"fmha|flash", re.I)  # in a graph, where torch's and xFormers' have the same names

_USAGE = f"""from xformers.ops import LowerTriangularMask, memory_efficient_attention

torchs_attention = {NAME}


def xformers_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    if torch.is_autocast_enabled("cuda"):  # which casts for torch's own function
        lower = torch.get_autocast_dtype("cuda")
        query, key, value = query.to(lower), key.to(lower), value.to(lower)
    parts = query, key, value
    fits = attn_mask is None and all(x.is_cuda and x.dim() == 4 and x.shape[-1] % 8 == 0 for x in parts)
    fits = fits and all(x.dtype == query.dtype != torch.float64 and x.shape[:2] == query.shape[:2] for x in parts)
    if not fits or (is_causal and query.shape[2] != key.shape[2]):
        grouped = {{"enable_gqa": True}} if enable_gqa else {{}}
        return torchs_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **grouped)
    mask = LowerTriangularMask() if is_causal else None
    # [B, H, L, D] for torch, [B, L, H, D] for xFormers
    parts = [x.transpose(1, 2) for x in parts]
    return memory_efficient_attention(*parts, attn_bias=mask, p=dropout_p, scale=scale).transpose(1, 2)


{WHERE}
{NAME} = xformers_attention"""


def is_installed(_: Scope) -> str | None:
    """The package xformers is installed."""
    if importlib.util.find_spec("xformers") is None:
        return "needs the package xformers, which is not installed (pip install xformers)"
    return None


def apply(context: ModelContext, value: Value) -> None:
    """Puts a function that calls xFormers, where it can, in the place of torch's."""
    if value == "off":
        return
    import torch

    torchs = torch.nn.functional.scaled_dot_product_attention
    context.notes[_ON] = run_lines(_USAGE)["xformers_attention"]
    replace(torchs, context.notes[_ON])


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether xFormers' operators ran in the profiled step, or torch's kernels that no function of torch had called."""
    trace = read.recorded(context)
    if isinstance(trace, EvidenceResult):
        return trace
    called = _called(trace)
    torchs = sum(bool(_TORCHS.fullmatch(name)) for name in called)
    theirs = len(called) - torchs
    words = f"{plural(theirs, 'attention')} of xFormers and {torchs} of torch ran in the step"
    if value == "off":  # nothing was changed; the workload's own code may call xFormers
        return EvidenceResult(True, words)
    if _ON not in context.notes:
        return EvidenceResult(False, f"{words}; nothing replaces torch's")
    if theirs:
        rest = ", for arguments that xFormers does not take" if torchs else ""
        return EvidenceResult(theirs > torchs, f"{words}{rest}")
    if torchs:
        return EvidenceResult(False, words)
    if read.is_blind(context, trace):
        return EvidenceResult(None, f"{words}; {read.BLIND}")
    if read.replays_graph(trace):
        fused = sum(bool(_KERNEL.search(kernel.name)) for kernel in trace.kernels)
        words += f"; a CUDA graph hides operators, and {plural(fused, 'kernel')} of fused attention ran in it"
        return EvidenceResult(None if fused else False, words)
    return EvidenceResult(False, words)


def _called(trace: Trace) -> list[str]:
    """The names of the attention operators that no other one of them had called."""
    found: list[str] = []
    inside: int | None = None  # the depth of the last one
    for operator in trace.operators:
        if inside is not None and operator.depth > inside:
            continue
        inside = None
        if _THEIRS.fullmatch(operator.name) or _TORCHS.fullmatch(operator.name):
            found.append(operator.name)
            inside = operator.depth
    return found


XFORMERS_ATTENTION = Toggle(
    name="xformers_attention",
    summary="xFormers' memory-efficient attention in the place of scaled_dot_product_attention.",
    values={
        "off": "torch's own function",
        "on": "xFormers' function, for calls without a mask; torch's for the others",
    },
    stage=Stage.MODEL,
    applies=has_attention,
    requires={
        "on": Requirement(device_kinds=("cuda",), compute_capability=(6, 0), torch_version=(2, 4), check=is_installed)
    },
    apply=apply,
    evidence=evidence,
    usage=lambda value, _: _USAGE if value == "on" else "# xformers_attention: off",
    claims=("gpu-guide",),
    source="xFormers documentation: Memory-efficient attention (xformers.ops.memory_efficient_attention)",
)
