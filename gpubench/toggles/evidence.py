"""Dtypes, layouts and attention backends as a trace's operators show them; shared by several toggles."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpubench.toggles.toggle import EvidenceResult

if TYPE_CHECKING:
    from gpubench.measure.trace import Operator, Trace
    from gpubench.toggles.model_context import ModelContext

# A toggle took effect if it reached at least this share of the work it is about. Not all of it: autocast keeps in fp32
# what a model excludes (a loss, a normalization), and a reshape inside attention can give one convolution a contiguous
# tensor. If more than a fifth is missed, the model does not run as labelled.
MAJORITY = 0.8

# The operators that do the arithmetic. Callers of these (aten::conv2d, aten::linear, aten::matmul) still have
# arguments that autocast has not yet cast. What one of these calls in turn (aten::mkldnn_convolution) is a part of it.
_CONVOLUTION = r"aten::_?convolution|mkldnn::_convolution(_transpose)?_pointwise\w*"
_COMPUTE = re.compile(
    rf"{_CONVOLUTION}|aten::(convolution_backward|_?addmm(_activation)?|mm|bmm|baddbmm|addbmm|mv|addmv|_int_mm|_weight_int[48]pack_mm\w*|_scaled_mm|_(scaled_)?grouped_mm\w*"
    r"|_cudnn_rnn(_backward)?|mkldnn_rnn_layer(_backward)?|_scaled_dot_product_(flash|efficient|cudnn|fused)\w*)"
    r"|mkldnn::_linear_pointwise\w*|mkl::_mkl_linear"
    r"|triton_tem_\w+"  # inductor's Triton templates are recorded with their arguments, like operators
)
_FORWARD = re.compile(_CONVOLUTION)
# What a convolution is computed by, after torch has put input and weight into one layout: cuDNN and oneDNN, or torch's
# own code, of which only the 2-D kinds can do channels-last; the others copy their input to the contiguous layout.
_LIBRARY = re.compile(r"aten::(cudnn_convolution|miopen_convolution|mkldnn_convolution)\w*|mkldnn::_convolution\w*")
_OWN = re.compile(r"aten::(_slow_conv2d_forward|slow_conv_dilated2d|slow_conv_transpose2d)")
_OWN_CONTIGUOUS = re.compile(r"aten::(slow_conv3d\w*|slow_conv_dilated3d|slow_conv_transpose3d|_?conv_depthwise\dd)")
_FLOATING = {
    "float": "fp32",
    "double": "fp64",
    "c10::BFloat16": "bf16",
    "c10::Half": "fp16",
    "c10::Float8_e4m3fn": "fp8",
}
# Products of what layers quantize by themselves, whatever dtype there is around them.
_QUANTIZED = re.compile(r"aten::(_int_mm|_scaled_mm\w*)|triton_\w*(_int_mm|_scaled_mm)\w*")

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
BLIND = "the profiler recorded neither a GPU kernel nor a call of CUDA (CUPTI gives no records here)"


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


def is_blind(context: ModelContext, trace: Trace) -> bool:
    """Whether the profiler recorded nothing of a GPU, not even that CUDA was called: what ran there is then unknown."""
    seen = trace.kernels or any(name.startswith(("cu", "hip")) for name in trace.names - _PROFILERS_OWN)
    return context.device.type == "cuda" and not seen


def _outermost(trace: Trace, pattern: re.Pattern[str]) -> list[tuple[Operator, list[Operator]]]:
    """The operators of that name that no other one of that name had called, each with those that it called."""
    found: list[tuple[Operator, list[Operator]]] = []
    inside = False
    for operator in trace.operators:
        inside = inside and operator.depth > found[-1][0].depth
        if inside:
            found[-1][1].append(operator)
        elif pattern.fullmatch(operator.name):
            found.append((operator, []))
            inside = True
    return found


def compute_operators(trace: Trace) -> list[Operator]:
    """The convolutions, matrix products and attentions of the step, backward ones included, each once."""
    return [operator for operator, _ in _outermost(trace, _COMPUTE)]


@dataclass(frozen=True)
class Convolution:
    """A forward convolution of the step, with the layouts that its input arrived in and was computed in."""

    operator: Operator
    arrived: str | None  # see `layout`
    computed: str | None


def convolutions(trace: Trace) -> list[Convolution]:
    """The forward convolutions of the step; input 0 is the activation `[B, C, *S]`, input 1 the weight."""
    return [
        Convolution(operator, _layout_of(operator), _computed_in(operator, called))
        for operator, called in _outermost(trace, _FORWARD)
    ]


def _computed_in(operator: Operator, called: Sequence[Operator]) -> str | None:
    # cuDNN and oneDNN compute in channels-last if either the input or the weight is; torch reorders the other one at
    # each call, so what they were called with decides. Inductor calls oneDNN directly.
    if any(_OWN_CONTIGUOUS.fullmatch(each.name) for each in called):
        return _layout_of(operator) and "contiguous"
    if library := next((each for each in called if _LIBRARY.fullmatch(each.name)), None):
        return _layout_of(library)
    if operator.name.startswith("mkldnn::"):
        return _layout_of(operator)
    own = next((each for each in called if _OWN.fullmatch(each.name)), operator)  # oneDNN's transposed is not recorded
    layouts = [_layout_of(own), _layout_of(own, 1)]
    return "channels_last" if "channels_last" in layouts else layouts[0]


def _layout_of(operator: Operator, argument: int = 0) -> str | None:
    if len(operator.shapes) <= argument or len(operator.strides) <= argument:
        return None
    return layout(operator.shapes[argument], operator.strides[argument])


def share(operators: Sequence[Operator], chosen: Callable[[Operator], bool]) -> float:
    """The share of the operators' work that the chosen ones do: of their FLOPs, or of their number where unknown."""
    counted = [operator.flops for operator in operators]
    known = all(counted) and None not in counted
    weights = [operator.flops or 0 if known else 1 for operator in operators]
    total = sum(weights)
    return sum(w for operator, w in zip(operators, weights, strict=True) if chosen(operator)) / total if total else 0.0


def operator_dtype(operator: Operator) -> str | None:
    """The dtype that an operator computed in (`fp32`, `bf16`, ...): that of its first floating-point argument."""
    return next((_FLOATING[dtype] for dtype in operator.dtypes if dtype in _FLOATING), None)


def is_quantized(operator: Operator) -> bool:
    """Whether it multiplies numbers of 8 bits that a layer has made of its weight and input."""
    return _QUANTIZED.fullmatch(operator.name) is not None


def is_quantized_weight(weight: object) -> bool:
    """Whether `weight` is one of torchao's tensors, which are stored in another form than they show."""
    return type(weight).__module__.startswith("torchao.")


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
