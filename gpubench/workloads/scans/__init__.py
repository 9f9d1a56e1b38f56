"""Ways to compute the gated recurrence h[t] = a[t] * h[t-1] + b[t], which is an associative scan over time."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import MappingProxyType

import torch
from torch import Tensor

from gpubench.workloads.scans import native, plain

Scan = Callable[[Tensor, Tensor, Tensor], Tensor]  # a and b [B, T, C], start (h[-1]) [B, C] -> h [B, T, C]

WAYS = MappingProxyType(
    {
        "loop": "a Python loop over time",
        "torch": "torch's associative_scan, a prototype in torch 2.13",
        "log": "a log-depth parallel scan in plain torch",
        "native": "one operator of our own: C++ with OpenMP and SIMD on a CPU, Triton on a GPU",
    }
)
_SCANS: dict[str, Scan] = {
    "loop": plain.loop,
    "torch": plain.associative,
    "log": plain.log_depth,
    "native": native.linear_scan,
}


def unavailable(way: str, kind: str) -> str | None:
    """Why `way` cannot run on a device of this kind ("cpu" or "cuda"), as one sentence; None where it can.

    Nothing is built for the answer.
    """
    if way == "native":
        return native.unavailable(kind)
    if way == "torch":
        try:
            importlib.import_module("torch._higher_order_ops.associative_scan")
        except ImportError:
            return f"torch {torch.__version__} has no associative_scan"
    return None


def prepare(way: str) -> None:
    """Makes `way` ready, outside of any timed step. Raises GpubenchError where no device here can run it."""
    if way == "native":
        native.prepare()


def scan(way: str, a: Tensor, b: Tensor, start: Tensor) -> Tensor:
    """h [B, T, C] of a and b [B, T, C] and start (h[-1]) [B, C], in b's dtype; halves are accumulated in fp32."""
    dtype = b.dtype
    if way != "native" and b.itemsize < 4:
        a, b, start = a.float(), b.float(), start.float()
    return _SCANS[way](a.to(b.dtype), b, start.to(b.dtype)).to(dtype)
