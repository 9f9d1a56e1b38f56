"""gpubench::norm_silu on a GPU, in Triton. Written but not yet run on a GPU.

A group of one sample has more elements than a program should walk alone: `_moments` takes mean and squares of a part of
a group in each program, and `_normalise` puts the parts of its group together and writes a block of the result.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # elements of a group that a program has at a time
PARTS = 64  # of a group, at most: each is a program of `_moments`


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _place(unit, element, groups, width, pixels, INNERMOST: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: N803
    """Where in memory an element of a group is, and which channel it belongs to."""
    sample, group = unit // groups, unit % groups
    if INNERMOST:
        channel = group * width + element % width
        return (sample * pixels + element // width) * (groups * width) + channel, channel
    channel = group * width + element // pixels
    return unit * (width * pixels) + element, channel


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _norm_silu_moments(  # type: ignore[no-untyped-def]
    x, parts, groups, width, pixels, share,
    COUNT: tl.constexpr, INNERMOST: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    unit, part = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    total = width * pixels
    first = part * share
    last = tl.minimum(first + share, total)
    count = tl.zeros([BLOCK], dtype=ACC)
    mean = tl.zeros([BLOCK], dtype=ACC)
    squares = tl.zeros([BLOCK], dtype=ACC)
    for start in range(first, last, BLOCK):  # each lane by itself, value by value (Welford)
        element = start + tl.arange(0, BLOCK)
        inside = element < last
        place, _ = _place(unit, element, groups, width, pixels, INNERMOST)
        value = tl.load(x + place, mask=inside, other=0.0).to(ACC)
        count += inside.to(ACC)
        apart = tl.where(inside, value - mean, 0.0)
        mean += apart / tl.maximum(count, 1.0)
        squares += apart * tl.where(inside, value - mean, 0.0)
    n = tl.sum(count, axis=0)
    middle = tl.sum(count * mean, axis=0) / tl.maximum(n, 1.0)
    away = mean - middle
    here = parts + (unit * COUNT + part) * 3
    tl.store(here, n)
    tl.store(here + 1, middle)
    tl.store(here + 2, tl.sum(squares + count * away * away, axis=0))


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _norm_silu_normalise(  # type: ignore[no-untyped-def]
    x, y, weight, bias, parts, groups, width, pixels, eps,
    COUNT: tl.constexpr, INNERMOST: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    unit = tl.program_id(0).to(tl.int64)
    here = parts + (unit * COUNT + tl.arange(0, COUNT)) * 3
    count, mean, squares = tl.load(here), tl.load(here + 1), tl.load(here + 2)
    n = tl.sum(count, axis=0)
    middle = tl.sum(count * mean, axis=0) / n
    away = mean - middle
    inverse = 1.0 / tl.sqrt(tl.sum(squares + count * away * away, axis=0) / n + eps)
    element = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = element < width * pixels
    place, channel = _place(unit, element, groups, width, pixels, INNERMOST)
    scale = tl.load(weight + channel, mask=inside, other=0.0).to(ACC) * inverse
    shift = tl.load(bias + channel, mask=inside, other=0.0).to(ACC) - middle * scale
    z = tl.load(x + place, mask=inside, other=0.0).to(ACC) * scale + shift
    tl.store(y + place, z / (1.0 + tl.exp(-z)), mask=inside)


def forward(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """silu(group_norm(x)) of x [B, C, *S] without gaps, channels outermost or innermost."""
    y = torch.empty_like(x)
    if not x.numel():
        return y
    batch, channels = x.shape[:2]
    pixels, width = x.numel() // (batch * channels), channels // groups
    total = width * pixels
    count = min(PARTS, triton.next_power_of_2(triton.cdiv(total, 4 * BLOCK)))
    share = triton.cdiv(triton.cdiv(total, count), BLOCK) * BLOCK
    exact = torch.float64 if x.dtype is torch.float64 else torch.float32
    parts = torch.empty(batch * groups, count, 3, dtype=exact, device=x.device)
    how = {
        "COUNT": count,
        "INNERMOST": not x.is_contiguous(),
        "ACC": tl.float64 if exact is torch.float64 else tl.float32,
        "BLOCK": BLOCK,
    }
    _norm_silu_moments[batch * groups, count](x, parts, groups, width, pixels, share, **how)
    weight, bias = weight.contiguous(), bias.contiguous()
    grid = (batch * groups, triton.cdiv(total, BLOCK))
    _norm_silu_normalise[grid](x, y, weight, bias, parts, groups, width, pixels, eps, **how)
    return y
