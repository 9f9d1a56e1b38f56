"""gpubench::linear_scan on a GPU, in Triton. Written but not yet run on a GPU.

As in appendix D of the Griffin paper time is walked one step after the other: the recurrence is bound by memory, and a
parallel scan would read and write more. One program has one block of channels of one sequence.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 128  # channels of a program


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _forward(a, b, start, h, time, channels, ACC: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: N803
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < channels
    state = tl.load(start + row * channels + channel, mask=inside, other=0.0).to(ACC)
    here = row * time * channels + channel
    for _ in range(time):
        decay = tl.load(a + here, mask=inside, other=0.0).to(ACC)
        state = decay * state + tl.load(b + here, mask=inside, other=0.0).to(ACC)
        tl.store(h + here, state, mask=inside)
        here += channels


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _backward(grad, a, h, start, grad_a, grad_b, grad_start, time, channels, ACC: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: N803
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < channels
    carried = tl.zeros([BLOCK], dtype=ACC)  # a[t+1] * g[t+1]
    here = (row * time + time - 1) * channels + channel
    for step in range(time):
        g = tl.load(grad + here, mask=inside, other=0.0).to(ACC) + carried
        later = step < time - 1  # than the first: h[t-1] is one row up, else it is the start
        before = tl.load(h + here - channels, mask=inside & later, other=0.0).to(ACC)
        before += tl.load(start + row * channels + channel, mask=inside & (step == time - 1), other=0.0).to(ACC)
        tl.store(grad_b + here, g, mask=inside)
        tl.store(grad_a + here, g * before, mask=inside)
        carried = tl.load(a + here, mask=inside, other=0.0).to(ACC) * g
        here -= channels
    tl.store(grad_start + row * channels + channel, carried, mask=inside)


def forward(a: Tensor, b: Tensor, start: Tensor) -> Tensor:
    """h of contiguous a and b [B, T, C] and start [B, C]."""
    h = torch.empty_like(b)
    if b.numel():
        _forward[_grid(b)](a, b, start, h, *b.shape[1:], ACC=_accumulator(b), BLOCK=BLOCK)
    return h


def backward(grad: Tensor, a: Tensor, h: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of a, b and start, all contiguous."""
    grad_a, grad_b, grad_start = torch.empty_like(a), torch.empty_like(a), torch.empty_like(start)
    if a.numel():
        tensors = (grad, a, h, start, grad_a, grad_b, grad_start)
        _backward[_grid(a)](*tensors, *a.shape[1:], ACC=_accumulator(a), BLOCK=BLOCK)
    return grad_a, grad_b, grad_start


def _grid(like: Tensor) -> tuple[int, int]:
    return like.shape[0], triton.cdiv(like.shape[2], BLOCK)


def _accumulator(like: Tensor) -> tl.dtype:
    return tl.float64 if like.dtype is torch.float64 else tl.float32
