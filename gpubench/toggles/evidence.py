"""What a trace says about dtypes and layouts: the readings that several toggles prove themselves with."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpubench.toggles.toggle import Proof

if TYPE_CHECKING:
    from gpubench.measure.trace import Operator, Trace
    from gpubench.toggles.subject import Subject

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
)
_CONVOLUTION = re.compile(r"aten::convolution|mkldnn::_convolution(_transpose)?_pointwise\w*")
# What cuDNN and oneDNN are called with, after torch has put input and weight into one layout.
_BACKEND_CONVOLUTION = re.compile(
    r"aten::(cudnn_convolution\w*|mkldnn_convolution)|mkldnn::_convolution(_transpose)?_pointwise\w*"
)
_FLOATING = {"float": "fp32", "double": "fp64", "c10::BFloat16": "bf16", "c10::Half": "fp16"}

# GPU kernels of cuBLAS, cuDNN, CUTLASS and flash attention carry their input type in their names. Needed where a CUDA
# graph replays: then no operator is seen, only kernels. nvjet is cuBLAS's Hopper family: t is bf16, h is fp16.
_COMPUTE_KERNEL = re.compile(r"gemm|conv|xmma|cutlass|nvjet|wgrad|dgrad|fprop|flash|fmha|winograd", re.IGNORECASE)
_KERNEL_DTYPES = (
    ("bf16", re.compile(r"bf16|bfloat16|nvjet_(sm\d+_)?t", re.IGNORECASE)),
    ("fp16", re.compile(r"fp16|(?<!b)f16|half|hmma|(?<![a-z])h(884|1688|16816)|nvjet_(sm\d+_)?h", re.IGNORECASE)),
    ("tf32", re.compile(r"tf32|(?<![a-z])s1688", re.IGNORECASE)),
    ("fp32", re.compile(r"sgemm|scudnn|f32f32_f32f32|fp32|simt_s", re.IGNORECASE)),
)


def unreadable(subject: Subject) -> Proof:
    """What evidence says where there is no trace: nothing could be read, and why."""
    return Proof(
        took_effect=None, detail=f"the step could not be profiled: {subject.trace_error or 'no trace was taken'}"
    )


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


def compute_kernels(trace: Trace) -> list[str]:
    """The GPU kernels of convolutions, matrix products and attentions."""
    return [name for name in trace.kernels if _COMPUTE_KERNEL.search(name)]


def kernel_dtype(name: str) -> str | None:
    """The dtype that a GPU kernel's name tells, or None where it tells none."""
    return next((dtype for dtype, pattern in _KERNEL_DTYPES if pattern.search(name)), None)


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
