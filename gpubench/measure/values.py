"""How far the numbers of one tensor are from the reference's, and how much rounding alone changes them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from gpubench.measure import order

if TYPE_CHECKING:
    import torch

    Tensors = Mapping[str, torch.Tensor]

ROUNDED_TOLERANCE = 0.06  # what bf16 is allowed; `Rounding` is the effect of rounding to bf16
FILL = 1e4  # what masks with a finite number takes a larger one: -1e4, -65504, -1e9, the lowest of a dtype
FILL_FACTOR = 1e3  # by which it exceeds everything else
LEVELS = 64  # an 8-bit or 16-bit tensor with more different values is a picture or a sound, one with fewer has classes
MIN_PART = 16  # values of a part that tell its size; fewer are small by chance
MIN_POOL = 8  # the same of several parts of like size together
SMALL = 0.01  # of the whole tensor: a part along the first dimension is no element of a batch like the others
MAX_PARTS = 4096
BLOCK = 2**18  # values at a time, which fit in a core's cache


class Rounding(msgspec.Struct, frozen=True):
    """What rounding alone changes in one output of the plain model."""

    nudge: float = 0.0  # relative change where weights and inputs differ as fp32 rounds; of classes, the share
    error: float = 0.0  # root mean square of the change where they are rounded to bf16; of classes, the share
    parts: dict[str, list[float]] = msgspec.field(default_factory=dict)  # dimension -> the same for each index of it

    def or_worse(self, other: Rounding) -> Rounding:
        """The larger of each figure of two batches, whose shapes may differ."""
        parts = {
            axis: list(map(max, mine, other.parts[axis]))
            for axis, mine in self.parts.items()
            if len(other.parts.get(axis, ())) == len(mine)
        }
        return Rounding(max(self.nudge, other.nudge), max(self.error, other.error), parts)


@dataclass(frozen=True)
class Part:
    """The indices of one dimension of two tensors, each by itself."""

    size: torch.Tensor  # root mean square of the reference at each index
    error: torch.Tensor  # of the difference
    count: torch.Tensor  # values of the reference that are not zero


@dataclass(frozen=True)
class Distance:
    """Two tensors compared as vectors."""

    error: float  # ||out - ref|| / ||ref||
    cosine: float
    norms: float  # ||out|| / ||ref||
    size: float = 0.0  # root mean square of the reference
    out_size: float = 0.0
    parts: Mapping[int, Part] = field(default_factory=dict)


def distance(out: torch.Tensor, ref: torch.Tensor, axes: Sequence[int] = ()) -> Distance:
    """The distance of finite real tensors, whatever their scale; and that of their parts along each of `axes`.

    A block at a time, in fp64: temporary copies of a large tensor would take longer than the arithmetic.
    """
    import torch

    scale = max(top(out), top(ref)) or 1.0
    sums = torch.zeros(4, dtype=torch.float64)
    parts = {axis: torch.zeros(3, ref.shape[axis], dtype=torch.float64) for axis in axes}
    rows = max(1, BLOCK * max(1, len(ref) if ref.dim() else 1) // max(1, ref.numel()))
    blocks = zip(out.split(rows), ref.split(rows), strict=True) if ref.dim() else [(out, ref)]
    for number, (one, other) in enumerate(blocks):
        mine, own = one.double() / scale, other.double() / scale
        apart = mine - own
        vectors = [each.reshape(-1) for each in (apart, mine, own)]
        sums += torch.stack([*(each @ each for each in vectors), vectors[1] @ vectors[2]])
        for axis, found in parts.items():
            others = [each for each in range(own.dim()) if each != axis]
            summed = torch.stack([each.sum(others) for each in (own.square(), apart.square(), (own != 0).double())])
            found[:, slice(number * rows, (number + 1) * rows) if axis == 0 else slice(None)] += summed
    error, length, expected = (float(each) ** 0.5 for each in sums[:3])
    count = max(1, ref.numel())
    return Distance(
        error=ratio(error, expected),
        cosine=ratio(float(sums[3]), length * expected),
        norms=ratio(length, expected),
        size=scale * (expected / count**0.5),
        out_size=scale * (length / count**0.5),
        parts={axis: _part(found, count / found.shape[1], scale) for axis, found in parts.items()},
    )


def _part(sums: torch.Tensor, values: float, scale: float) -> Part:
    return Part(scale * (sums[0] / values).sqrt(), scale * (sums[1] / values).sqrt(), sums[2])


def top(tensor: torch.Tensor) -> float:
    """The largest magnitude; NaN if there is one."""
    import torch

    return (
        float(torch.linalg.vector_norm(tensor.float() if tensor.itemsize < 4 else tensor, torch.inf))
        if tensor.numel()
        else 0.0
    )


def ratio(value: float, base: float) -> float:
    """`value` / `base`; 0 / 0 is 0, and anything else over 0 is infinite."""
    return value / base if base else (0.0 if value == 0 else math.inf)


def as_real(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as floating numbers; a complex one with its two parts as the last dimension."""
    import torch

    real = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return real if real.is_floating_point() and real.itemsize >= 4 else real.float()


def is_counted(tensor: torch.Tensor) -> bool:
    """Whether its values are compared for equality: truth values, classes, indices, but no pictures or sounds."""
    import torch

    if tensor.is_floating_point() or tensor.is_complex():
        return False
    if tensor.dtype in (torch.uint8, torch.int8, torch.int16, torch.uint16) and tensor.numel():
        levels = tensor.flatten().int()
        return int((levels - levels.min()).bincount().count_nonzero()) <= LEVELS
    return True


def masked(ref: torch.Tensor) -> torch.Tensor:
    """Where the reference is infinite or holds what stands for it: a dtype's extreme, or one huge number repeated."""
    import torch

    size = ref.abs()
    found = size.isinf()
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        if torch.finfo(dtype).max <= torch.finfo(ref.dtype).max:
            found |= size == torch.finfo(dtype).max
    rest = size[~found & ~size.isnan()]
    if rest.numel() and (largest := float(rest.max())) >= FILL:
        below = rest[rest != largest]
        if rest.numel() - below.numel() > 1 and (not below.numel() or float(below.max()) * FILL_FACTOR < largest):
            found |= size == largest
    return found


def parts(shape: Sequence[int]) -> list[int]:
    """The dimensions along which a tensor may hold unlike things (boxes beside scores): the last and the first two."""
    total = math.prod(shape)
    fitting = (axis for axis in {0, 1, len(shape) - 1} if len(shape) > 1 and 2 <= shape[axis] <= MAX_PARTS)
    return [axis for axis in sorted(fitting) if total > shape[axis]]


def pooled(part: Part, noise: torch.Tensor) -> tuple[Part, torch.Tensor]:
    """The parts and their noise, where those of few values have the figures of all such parts of like size."""
    few, decade = part.count < MIN_PART, part.size.log10().floor()
    size, error, count, noise = (each.clone() for each in (part.size, part.error, part.count, noise))
    for like in decade[few & (part.size > 0)].unique():
        chosen = few & (decade == like)
        for each in (size, error, noise):
            each[chosen] = each[chosen].square().mean().sqrt()
        count[chosen] = count[chosen].sum()
    return Part(size, error, count), noise


def rounding_of(
    plain: Sequence[Tensors],
    nudged: Tensors,
    rounded: Sequence[Tensors],
    compare: str | Mapping[str, str] = "values",
) -> dict[str, Rounding]:
    """What rounding changes in each output.

    Args:
        plain: the plain model's outputs for each batch.
        nudged: the same for the first batch, where weights and inputs differ by a rounding of fp32.
        rounded: the same for each batch, where weights and inputs are rounded to bf16.
    """
    found: dict[str, Rounding] = {}
    for own, near, far in zip(plain, [nudged, *plain[1:]], rounded, strict=True):
        for name, tensor in own.items():
            if tensor.numel() and name in near and name in far:
                one = _rounding(tensor, near[name], far[name], order.how(name, compare))
                found[name] = found[name].or_worse(one) if name in found else one
    return found


def _rounding(plain: torch.Tensor, nudged: torch.Tensor, rounded: torch.Tensor, how: str) -> Rounding:
    if how == "set":
        return Rounding(error=order.unmatched(rounded, plain, ROUNDED_TOLERANCE)[0])
    if not plain.shape == nudged.shape == rounded.shape:
        return Rounding()
    if how == "rank" and order.has_order(plain):
        return Rounding(error=order.displaced(rounded, plain)[0])
    if is_counted(plain):
        near_share, far_share = (float((other != plain).double().mean()) for other in (nudged, rounded))
        return Rounding(near_share, far_share)
    ref, near, far = as_real(plain), as_real(nudged), as_real(rounded)
    if not all(math.isfinite(top(each)) for each in (ref, near, far)) or top(ref) >= FILL:
        numbers = ref.isfinite() & near.isfinite() & far.isfinite() & ~masked(ref)
        ref, near, far = (each.where(numbers, 0.0) for each in (ref, near, far))
    changed = distance(far, ref, parts(plain.shape))
    return Rounding(
        nudge=finite(distance(near, ref).error),
        error=finite(changed.error * changed.size),
        parts={str(axis): [finite(each) for each in part.error.tolist()] for axis, part in changed.parts.items()},
    )


def finite(value: float) -> float:
    """`value`, or 0 where it is no number."""
    return value if math.isfinite(value) else 0.0
