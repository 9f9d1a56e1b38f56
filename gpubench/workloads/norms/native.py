"""The operator gpubench::norm_silu, silu(group_norm(x)): C++ on a CPU, Triton on a GPU.

An operator of torch.library, so that torch.compile keeps it as one call and the profiler shows it. Of its tensors
autograd keeps x, weight and bias alone: the backward pass computes the norm again, on a GPU by torch's own operators.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpubench.errors import GpubenchError
from gpubench.workloads.native_library import NativeLibrary

Gradients = tuple[Tensor, Tensor, Tensor]  # of x, weight and bias

LIBRARY = torch.library.Library("gpubench", "FRAGMENT")  # lives as long as the module: the operator goes with it
LIBRARY.define(
    "norm_silu(Tensor x, Tensor weight, Tensor bias, int groups, float eps) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "norm_silu_backward(Tensor grad, Tensor x, Tensor weight, Tensor bias, int groups, float eps)"
    " -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
INSTEAD = "Use norm_silu=torch, or mend that."
BUILT = NativeLibrary(
    source=Path(__file__).with_name("norm_silu.cpp"),
    headers=(Path(__file__).with_name("norm_silu.h"),),
    name="gpubench_norm_silu",
    what="the fused norm",
    instead=INSTEAD,
)
_INNERMOST = {4: torch.channels_last, 5: torch.channels_last_3d}


def layout(x: Tensor) -> torch.memory_format:
    """The layout of the result: channels innermost where x has them so, without gaps."""
    innermost = _INNERMOST.get(x.dim())
    if innermost is None or x.is_contiguous() or not x.is_contiguous(memory_format=innermost):
        return torch.contiguous_format
    return innermost


@torch.library.register_fake("gpubench::norm_silu", lib=LIBRARY)  # type: ignore[untyped-decorator,unused-ignore]
def _fake(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    return torch.empty_like(x, memory_format=layout(x))


@torch.library.impl("gpubench::norm_silu", "CUDA", lib=LIBRARY)
def _cuda(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    from gpubench.workloads.norms import triton_norm_silu

    return triton_norm_silu.forward(x.contiguous(memory_format=layout(x)), weight, bias, groups, eps)


@torch.library.register_fake("gpubench::norm_silu_backward", lib=LIBRARY)  # type: ignore[untyped-decorator,unused-ignore]
def _fake_backward(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Gradients:
    return torch.empty_like(x, memory_format=layout(x)), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


@torch.library.impl("gpubench::norm_silu_backward", "CUDA", lib=LIBRARY)
def _cuda_backward(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Gradients:
    how = layout(x)
    wide = x.to(weight.dtype).contiguous(memory_format=how)  # autocast leaves the weights in fp32
    sizes = (x.shape[0], x.shape[1], x.shape[2:].numel(), groups)
    z, mean, inverse = torch.ops.aten.native_group_norm(wide, weight, bias, *sizes, eps)
    grad_z = torch.ops.aten.silu_backward(grad.to(z.dtype), z).contiguous(memory_format=how)
    everything = [True, True, True]
    found = torch.ops.aten.native_group_norm_backward(grad_z, wide, mean, inverse, weight, *sizes, everything)
    grad_x, grad_weight, grad_bias = found
    return grad_x.to(x.dtype).contiguous(memory_format=how), grad_weight, grad_bias


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int, float], output: Tensor) -> None:
    x, weight, bias, ctx.groups, ctx.eps = inputs
    ctx.save_for_backward(x, weight, bias)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    found: Gradients = torch.ops.gpubench.norm_silu_backward(grad, *ctx.saved_tensors, ctx.groups, ctx.eps)
    return (*found, None, None)


torch.library.register_autograd("gpubench::norm_silu", _backward, setup_context=_keep, lib=LIBRARY)


def norm_silu(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """silu(group_norm(x)) of [B, C, *S], in the dtype and layout of x. See `prepare`."""
    y: Tensor = torch.ops.gpubench.norm_silu(x, weight, bias, groups, eps)
    return y


def unavailable(kind: str) -> str | None:
    """Why there is no fused norm on a device of this kind ("cpu" or "cuda"), as one sentence; None where there is."""
    if kind == "cpu":
        return BUILT.unavailable()
    if kind == "cuda" and importlib.util.find_spec("triton"):
        return None
    return "the fused norm needs Triton on a GPU, which is not installed" if kind == "cuda" else f"none for {kind}"


@functools.cache
def _load() -> None:
    BUILT.load()


def prepare() -> None:
    """Makes the operator ready on every device here that it can run on. Raises GpubenchError where there is none."""
    kinds = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    reasons = {kind: unavailable(kind) for kind in kinds}
    if all(reasons.values()):
        raise GpubenchError(f"norm_silu=fused cannot run: {reasons[kinds[-1]]}.", INSTEAD)
    if reasons["cpu"] is None:
        _load()
