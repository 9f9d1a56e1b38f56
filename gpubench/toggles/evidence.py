"""What a trace's operators say of dtypes, layouts and attention: the readings that several toggles share."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpubench.toggles.toggle import EvidenceResult

if TYPE_CHECKING:
    from gpubench.measure.trace import Operator, Trace
    from gpubench.toggles.model_context import ModelContext

# A toggle's effect is proven where it reached at least this share of the operators it is about. Not all of them:
# autocast leaves what a model fences off in fp32 (a loss, a normalization), and a reshape inside attention hands one
# convolution a contiguous tensor. A model of which more than a fifth escaped does not run what the label says.
MAJORITY = 0.8

# The operators that do the arithmetic. Those above them (aten::conv2d, aten::linear, aten::matmul) still see what
# autocast has not yet cast; those below them (aten::mkldnn_convolution, aten::cudnn_convolution) would count twice.
_COMPUTE = re.compile(
    r"aten::(convolution|convolution_backward|_?addmm(_activation)?|mm|bmm|baddbmm|addbmm|mv|addmv"
    r"|_cudnn_rnn|mkldnn_rnn_layer|_scaled_dot_product_(flash|efficient|cudnn|fused)\w*)"
    r"|mkldnn::(_convolution(_transpose)?_pointwise\w*|_linear_pointwise\w*)"
    r"|triton_tem_\w+"  # inductor's Triton templates are launched with their arguments told, like operators
)
_CONVOLUTION = re.compile(r"aten::convolution|mkldnn::_convolution(_transpose)?_pointwise\w*")
# What cuDNN and oneDNN are called with, after torch has put input and weight into one layout.
_BACKEND_CONVOLUTION = re.compile(
    r"aten::(cudnn_convolution\w*|mkldnn_convolution)|mkldnn::_convolution(_transpose)?_pointwise\w*"
)
_FLOATING = {"float": "fp32", "double": "fp64", "c10::BFloat16": "bf16", "c10::Half": "fp16"}

# Attention's backends with the operator of the forward pass and, where a CUDA graph hides that, the kernel's name.
# The one that is plain operators ("math") has no kernel of its own. cuDNN's kernels have "flash" in their names too.
_ATTENTIONS = (
    ("cudnn", "aten::_scaled_dot_product_cudnn_attention", re.compile(r"cudnn\w*(sdpa|flash)", re.I)),
    ("flash", "aten::_scaled_dot_product_flash_attention", re.compile(r"(?<!_)flash(_fwd|::)", re.I)),
    ("flash", "aten::_scaled_dot_product_flash_attention_for_cpu", None),
    ("efficient", "aten::_scaled_dot_product_efficient_attention", re.compile(r"fmha_cutlassF", re.I)),
    ("math", "aten::_scaled_dot_product_attention_math", None),
)

_PROFILERS_OWN = frozenset({"cudaDeviceSynchronize"})  # it is there even where nothing of a step was recorded


def recorded(context: ModelContext) -> Trace | EvidenceResult:
    """The trace of the profiled step or, where that shows nothing at all, the proof that says why nothing is proven."""
    trace = context.trace
    if trace is None:
        return EvidenceResult(
            took_effect=None, detail=f"the step could not be profiled: {context.trace_error or 'no trace was taken'}"
        )
    if not (trace.operators or trace.kernels or trace.names - _PROFILERS_OWN):
        return EvidenceResult(took_effect=None, detail="the profiler recorded nothing of the step")
    return trace


def replays_graph(trace: Trace) -> bool:
    """Whether a CUDA graph was launched in the step; its operators are then invisible."""
    return any("GraphLaunch" in name for name in trace.names)


def compute_operators(trace: Trace) -> list[Operator]:
    """The convolutions, matrix products and attentions of the step, backward ones included."""
    return [operator for operator in trace.operators if _COMPUTE.fullmatch(operator.name)]


def convolutions(trace: Trace) -> list[Operator]:
    """The forward convolutions of the step; input 0 is the activation `[B, C, *S]`, input 1 the weight."""
    return [operator for operator in trace.operators if _CONVOLUTION.fullmatch(operator.name)]


def backend_convolutions(trace: Trace) -> list[Operator]:
    """The calls of cuDNN and oneDNN in the step; input 0 is the activation as it was computed on."""
    return [operator for operator in trace.operators if _BACKEND_CONVOLUTION.fullmatch(operator.name)]


def operator_dtype(operator: Operator) -> str | None:
    """The dtype that an operator computed in, `fp32`, `bf16`, ...: that of its first floating argument."""
    return next((_FLOATING[dtype] for dtype in operator.dtypes if dtype in _FLOATING), None)


def launched_dtypes(trace: Trace) -> dict[str, str | None]:
    """The dtypes of those compute operators that launch a kernel of their own name, by that name."""
    return {each.name: operator_dtype(each) for each in compute_operators(trace) if each.name.startswith("triton_")}


def attention_backends(trace: Trace) -> tuple[str, ...]:
    """The backends that ran scaled dot-product attention: `cudnn`, `flash`, `efficient`, `math`; empty if none is seen.

    Compiled code calls the first three as they are, but takes `math` apart, which then cannot be told from other code.
    """
    operators = {operator.name for operator in trace.operators}
    found = [
        backend
        for backend, operator, kernel in _ATTENTIONS
        if operator in operators or (kernel and any(kernel.search(each.name) for each in trace.kernels))
    ]
    return tuple(dict.fromkeys(found))


def layout(shape: Sequence[int], strides: Sequence[int]) -> str | None:
    """`channels_last`, `contiguous`, or None where a tensor `[B, C, *S]` is both or neither.

    With one channel or one position in space the two layouts are the same strides, so such a tensor proves nothing.
    """
    space = [(size, stride) for size, stride in zip(shape[2:], strides[2:], strict=False) if size > 1]
    if len(shape) < 4 or len(shape) != len(strides) or shape[1] <= 1 or not space:
        return None
    if strides[1] == 1 and min(stride for _, stride in space) >= shape[1]:
        return "channels_last"
    if space[-1][1] == 1 and strides[1] >= math.prod(size for size, _ in space):
        return "contiguous"
    return None
