"""Dtype, algorithm and share of time of GPU kernels, by their names and durations.

Where a CUDA graph is replayed, only kernels are visible. Their names are internal to the libraries and may change, so
a kernel with an unrecognized name counts as unknown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpubench.measure.trace import Kernel, Trace

# Compute kernels of cuBLAS, cuDNN, CUTLASS, flash attention and Triton's templates. "conv" also occurs in the names of
# conversion kernels and of elementwise kernels that inductor names after what it fused.
_COMPUTE = re.compile(
    r"gemm|gemv|conv(?!ert)|xmma|cutlass|nvjet|wgrad|dgrad|fprop|scudnn|flash|fmha|sdpa|winograd|fft2d_|triton_tem_",
    re.I,
)
_ELEMENTWISE = re.compile(r"^triton_(?!tem_)|elementwise", re.I)

# Input dtypes as the libraries spell them, tried in this order: a name may contain the accumulator's (fp32) as well.
# nvjet is cuBLAS's kernel family from Hopper on: its first letter t is bf16, h is fp16.
_DTYPES = (
    ("bf16", re.compile(r"bf16|bfloat16|nvjet_(sm\d+_)?t", re.I)),
    ("fp16", re.compile(r"fp16|(?<!b)f16|half|hmma|(?<![a-z])h(884|1688|16816)|nvjet_(sm\d+_)?h", re.I)),
    ("tf32", re.compile(r"tf32|(?<![a-z])s1688", re.I)),
    ("fp32", re.compile(r"sgemm|scudnn|f32|fp32|simt_s|\bfloat\b", re.I)),
)

# cuDNN names its generated attention kernels f16 for both 16-bit formats.
_TELLS_NO_DTYPE = re.compile(r"cudnn_generated\w*sdpa", re.I)

# Tried in this order: attention and Winograd kernels contain matrix products and are named after them, too.
_FAMILIES = (
    ("Triton template", re.compile(r"triton_tem_", re.I)),
    ("attention", re.compile(r"flash|fmha|sdpa", re.I)),
    ("Winograd", re.compile(r"winograd", re.I)),
    ("FFT", re.compile(r"fft2d_", re.I)),
    ("explicit GEMM", re.compile(r"explicit_convolve", re.I)),
    ("implicit GEMM", re.compile(r"implicit|precomputed_convolve|(xmma_|\d)(fprop|dgrad|wgrad)|scudnn", re.I)),
    ("direct convolution", re.compile(r"conv|[dw]grad|fprop", re.I)),
    ("nvjet matrix product", re.compile(r"nvjet", re.I)),
    ("matrix product", re.compile(r"")),
)
_REORDERING = re.compile(r"nchwToNhwc|nhwcToNchw", re.I)
_LONGEST_NAME = 70  # characters of a kernel name in a message; full names reach several hundred


@dataclass(frozen=True)
class Share:
    """A share of the compute kernels' time, 0 to 1: at least `low`, and `high` if all unknown kernels count."""

    low: float
    high: float


def compute_kernels(trace: Trace) -> list[Kernel]:
    """The kernels of convolutions, matrix products and attentions."""
    return [each for each in trace.kernels if _COMPUTE.search(each.name) and not _ELEMENTWISE.search(each.name)]


def kernel_dtype(name: str) -> str | None:
    """The dtype in a kernel's name (`fp32`, `tf32`, `bf16`, `fp16`), or None if there is none."""
    if _TELLS_NO_DTYPE.search(name):
        return None
    return next((dtype for dtype, pattern in _DTYPES if pattern.search(name)), None)


def family(name: str) -> str:
    """The algorithm of a compute kernel: `implicit GEMM`, `Winograd`, `attention`, ..."""
    return next(each for each, pattern in _FAMILIES if pattern.search(name))


def share_in(trace: Trace, dtype: str, told: Mapping[str, str | None] | None = None) -> Share | None:
    """The share of the compute kernels' time that was spent in `dtype`; None if no compute kernel was recorded.

    `told` is the dtype, by kernel name, of kernels whose own name does not contain it.
    """
    times = _times(compute_kernels(trace), lambda name: kernel_dtype(name) or (told or {}).get(name) or "")
    if not times:
        return None
    total = sum(times.values())
    wanted, unknown = times.get(dtype, 0.0), times.get("", 0.0)
    return Share(low=wanted / total, high=(wanted + unknown) / total)


def _times(kernels: Iterable[Kernel], key: Callable[[str], str]) -> dict[str, float]:
    """Seconds by `key` of the kernels' names, longest first; empty where no time passed."""
    times: dict[str, float] = {}
    for kernel in kernels:
        times[key(kernel.name)] = times.get(key(kernel.name), 0.0) + kernel.seconds
    return dict(sorted(times.items(), key=lambda item: -item[1])) if sum(times.values()) > 0 else {}


def top(trace: Trace, count: int = 2) -> str:
    """The `count` compute kernels with most time and their share of all compute time; empty if there is none."""
    times = _times(compute_kernels(trace), str)
    total = sum(times.values())
    parts = [f"{_short(name)} {seconds / total:.0%}" for name, seconds in list(times.items())[:count]]
    return f"most compute time: {', '.join(parts)}" if parts else ""


def _short(name: str) -> str:
    name = name.removeprefix("void ")
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def algorithms(trace: Trace) -> str:
    """The compute kernels' algorithms by share of time, as a clause."""
    times = _times(compute_kernels(trace), family)
    if not times:
        return "no kernel shows which algorithms were used"
    total = sum(times.values())
    words = f"compute time by algorithm: {', '.join(f'{name} {spent / total:.0%}' for name, spent in times.items())}"
    reordering = sum(kernel.seconds for kernel in trace.kernels if _REORDERING.search(kernel.name))
    if reordering:
        words += f"; reordering between NCHW and NHWC took another {reordering / total:.0%}"
    return words
