"""The operator gpubench::linear_scan: C++ on a CPU, Triton on a GPU.

An operator of torch.library, so that torch.compile keeps it as one call and the profiler shows it. Its gradient is
the same recurrence backwards in time.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor

from gpubench.errors import GpubenchError
from gpubench.workloads.scans import building

Gradients = tuple[Tensor, Tensor, Tensor]

LIBRARY = torch.library.Library("gpubench", "FRAGMENT")  # lives as long as the module: the operators go with it
LIBRARY.define("linear_scan(Tensor a, Tensor b, Tensor start) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
LIBRARY.define(
    "linear_scan_backward(Tensor grad, Tensor a, Tensor h, Tensor start) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.register_fake("gpubench::linear_scan", lib=LIBRARY)  # type: ignore[untyped-decorator,unused-ignore]
def _fake(a: Tensor, b: Tensor, start: Tensor) -> Tensor:
    return b.new_empty(b.shape)


@torch.library.register_fake("gpubench::linear_scan_backward", lib=LIBRARY)  # type: ignore[untyped-decorator,unused-ignore]
def _fake_backward(grad: Tensor, a: Tensor, h: Tensor, start: Tensor) -> Gradients:
    return a.new_empty(a.shape), a.new_empty(a.shape), start.new_empty(start.shape)


@torch.library.impl("gpubench::linear_scan", "CUDA", lib=LIBRARY)
def _cuda(a: Tensor, b: Tensor, start: Tensor) -> Tensor:
    from gpubench.workloads.scans import triton_scan

    return triton_scan.forward(a.contiguous(), b.contiguous(), start.contiguous())


@torch.library.impl("gpubench::linear_scan_backward", "CUDA", lib=LIBRARY)
def _cuda_backward(grad: Tensor, a: Tensor, h: Tensor, start: Tensor) -> Gradients:
    from gpubench.workloads.scans import triton_scan

    return triton_scan.backward(grad.contiguous(), a.contiguous(), h.contiguous(), start.contiguous())


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    a, _, start = inputs
    ctx.save_for_backward(a, output, start)


def _backward(ctx: Any, grad: Tensor) -> Gradients:
    gradients: Gradients = torch.ops.gpubench.linear_scan_backward(grad, *ctx.saved_tensors)
    return gradients


torch.library.register_autograd("gpubench::linear_scan", _backward, setup_context=_keep, lib=LIBRARY)


def linear_scan(a: Tensor, b: Tensor, start: Tensor) -> Tensor:
    """h[t] = a[t] * h[t-1] + b[t]; a and b [B, T, C], start [B, C], one dtype -> h [B, T, C]. See `prepare`."""
    h: Tensor = torch.ops.gpubench.linear_scan(a, b, start)
    return h


def unavailable(kind: str) -> str | None:
    """Why there is no native scan on a device of this kind ("cpu" or "cuda"), as one sentence; None where there is."""
    if kind == "cpu":
        return building.unavailable()
    if kind == "cuda" and importlib.util.find_spec("triton"):
        return None
    return "the native scan needs Triton on a GPU, which is not installed" if kind == "cuda" else f"none for {kind}"


def prepare() -> None:
    """Makes the operator ready on every device here that it can run on. Raises GpubenchError where there is none."""
    kinds = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    reasons = {kind: unavailable(kind) for kind in kinds}
    if all(reasons.values()):
        reason = str(reasons[kinds[-1]])
        raise GpubenchError(f"scan=native cannot run: {reason}.", building.INSTEAD)
    if reasons["cpu"] is None:
        building.load()
