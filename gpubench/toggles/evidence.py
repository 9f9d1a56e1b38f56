"""Dtypes, layouts and attention backends as a trace's operators show them; shared by several toggles."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpubench.toggles.toggle import EvidenceResult

if TYPE_CHECKING:
    from gpubench.measure.trace import Operator, Trace
    from gpubench.toggles.model_context import ModelContext

# A toggle took effect if it reached at least this share of the operators it is about. Not all of them: autocast keeps
# in fp32 what a model excludes (a loss, a normalization), and a reshape inside attention can give one convolution a
# contiguous tensor. If more than a fifth is missed, the model does not run as labelled.
MAJORITY = 0.8

# The operators that do the arithmetic. Callers of these (aten::conv2d, aten::linear, aten::matmul) still have
# arguments that autocast has not yet cast; their callees (aten::mkldnn_convolution) would count twice.
_COMPUTE = re.compile(
    r"aten::(convolution|convolution_backward|_?addmm(_activation)?|mm|bmm|baddbmm|addbmm|mv|addmv"
    r"|_cudnn_rnn|mkldnn_rnn_layer|_scaled_dot_product_(flash|efficient|cudnn|fused)\w*)"
    r"|mkldnn::(_convolution(_transpose)?_pointwise\w*|_linear_pointwise\w*)"
    r"|triton_tem_\w+"  # inductor's Triton templates are recorded with their arguments, like operators
)
_CONVOLUTION = re.compile(r"aten::convolution|mkldnn::_convolution(_transpose)?_pointwise\w*")
# What cuDNN and oneDNN are called with, after torch has put input and weight into one layout.
_BACKEND_CONVOLUTION = re.compile(
    r"aten::(cudnn_convolution\w*|mkldnn_convolution)|mkldnn::_convolution(_transpose)?_pointwise\w*"
)
_FLOATING = {"float": "fp32", "double": "fp64", "c10::BFloat16": "bf16", "c10::Half": "fp16"}

# Attention backends with their forward operator and, for CUDA graphs, which hide operators, the kernel's name. "math"
# consists of plain operators and has no kernel of its own. cuDNN's kernels have "flash" in their names too.
_ATTENTIONS = (
    ("cudnn", "aten::_scaled_dot_product_cudnn_attention", re.compile(r"cudnn\w*(sdpa|flash)", re.I)),
    ("flash", "aten::_scaled_dot_product_flash_attention", re.compile(r"(?<!_)flash(_fwd|::)", re.I)),
    ("flash", "aten::_scaled_dot_product_flash_attention_for_cpu", None),
    ("efficient", "aten::_scaled_dot_product_efficient_attention", re.compile(r"fmha_cutlassF", re.I)),
    ("math", "aten::_scaled_dot_product_attention_math", None),
)

_PROFILERS_OWN = frozenset({"cudaDeviceSynchronize"})  # recorded even if nothing of the step was


def recorded(context: ModelContext) -> Trace | EvidenceResult:
    """The trace of the profiled step; if it is missing or empty, an undecided EvidenceResult that says why."""
    trace = context.trace
    if trace is None:
        return EvidenceResult(None, f"the step could not be profiled: {context.trace_error or 'no trace was taken'}")
    if not (trace.operators or trace.kernels or trace.names - _PROFILERS_OWN):
        return EvidenceResult(None, "the profiler recorded nothing of the step")
    return trace


def replays_graph(trace: Trace) -> bool:
    """Whether the step launched a CUDA graph, which hides its operators."""
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
    """The dtype that an operator computed in (`fp32`, `bf16`, ...): that of its first floating-point argument."""
    return next((_FLOATING[dtype] for dtype in operator.dtypes if dtype in _FLOATING), None)


def launched_dtypes(trace: Trace) -> dict[str, str | None]:
    """Kernel name -> dtype, for compute operators that launch a kernel of the same name."""
    return {each.name: operator_dtype(each) for each in compute_operators(trace) if each.name.startswith("triton_")}


def attention_backends(trace: Trace) -> tuple[str, ...]:
    """The backends that ran scaled dot-product attention: `cudnn`, `flash`, `efficient`, `math`; empty if none.

    Compiled code calls the first three as they are but decomposes `math`, which then looks like any other code.
    """
    operators = {operator.name for operator in trace.operators}
    found = [
        backend
        for backend, operator, kernel in _ATTENTIONS
        if operator in operators or (kernel and any(kernel.search(each.name) for each in trace.kernels))
    ]
    return tuple(dict.fromkeys(found))


def layout(shape: Sequence[int], strides: Sequence[int]) -> str | None:
    """`channels_last`, `contiguous`, or None if a tensor `[B, C, *S]` is both or neither.

    With one channel or one spatial position both layouts have the same strides.
    """
    space = [(size, stride) for size, stride in zip(shape[2:], strides[2:], strict=False) if size > 1]
    if len(shape) < 4 or len(shape) != len(strides) or shape[1] <= 1 or not space:
        return None
    if strides[1] == 1 and min(stride for _, stride in space) >= shape[1]:
        return "channels_last"
    if space[-1][1] == 1 and strides[1] >= math.prod(size for size, _ in space):
        return "contiguous"
    return None
