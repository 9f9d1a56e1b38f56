"""Outputs that are sorted or selected: compared as sets of rows, or by the order they are in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

How = Literal["values", "set", "rank"]
HOW: tuple[How, ...] = ("values", "set", "rank")
FAR = 1e4  # times what is usual in its column: an infinity or a mask
MAX_DISTANCES = 2**20  # of rows to one another; of larger sets, some rows are looked for


def how(name: str, compare: str | Mapping[str, str]) -> str:
    """How the output of that path is compared: a key is a path or a part of it, and the longest that fits counts."""
    if isinstance(compare, str):
        return compare
    fitting = [key for key in compare if names(key, name)]
    return compare[max(fitting, key=len)] if fitting else "values"


def names(key: str, name: str) -> bool:
    """Whether `key` is a part of the path `name`: `boxes` and `0.boxes` of `output.0.boxes`."""
    return f".{key}." in f".{name}."


def unmatched(out: torch.Tensor, ref: torch.Tensor, tolerance: float) -> tuple[float, int]:
    """The share of rows without a counterpart, in whatever order, 0..1; and the number of rows.

    Rows are along the first dimension, or along the second within each element of the first: what fits better counts.
    """
    out, ref = (each.reshape(each.shape or (1,)) for each in (out, ref))
    found = [(1.0, 1)]
    for pairs in _layouts(out, ref, width=1):
        shares = [_without_counterpart(one, other, tolerance) for one, other in pairs]
        rows = sum(max(len(one), len(other)) for one, other in pairs)
        found.append((sum(shares) / max(1, len(shares)), rows))
    return min(found)


def permuted(out: torch.Tensor, ref: torch.Tensor, tolerance: float) -> bool:
    """Whether rows or ids came in another order. Single floating numbers are no rows: they are alike by chance."""
    if ref.numel() > MAX_DISTANCES:  # nothing that large is selected
        return False
    for pairs in _layouts(out, ref, width=2 if ref.is_floating_point() or ref.is_complex() else 1):
        elsewhere = [_without_counterpart(one, other, tolerance) for one, other in pairs]
        here = [_off_in_place(one, other, tolerance) for one, other in pairs]
        if elsewhere and sum(elsewhere) <= tolerance * len(pairs) and sum(here) > 2 * sum(elsewhere):
            return True
    return False


def _layouts(out: torch.Tensor, ref: torch.Tensor, width: int) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """The ways to see rows of at least `width` numbers in tensors of any shape: each is a list of sets of rows."""
    found = []
    if ref.dim() and out.shape[1:] == ref.shape[1:] and math.prod(ref.shape[1:]) >= width:
        found.append([(out, ref)])
    inner = ref.dim() > 1 and out.dim() == ref.dim() and len(out) == len(ref) and out.shape[2:] == ref.shape[2:]
    if inner and math.prod(ref.shape[2:]) >= width:
        found.append(list(zip(out, ref, strict=True)))
    return found


def _rows(out: torch.Tensor, ref: torch.Tensor, tolerance: float) -> tuple[torch.Tensor, torch.Tensor, float]:
    """[N, F] and [M, F] in fp64, and the distance at which two rows count as the same.

    Each column in units of what is usual in it, so that scores count beside boxes in pixels, and no infinity or mask
    makes everything else alike.
    """
    one, other = (_flat(each) for each in (out, ref))
    if not (ref.is_floating_point() or ref.is_complex()):
        return one, other, 0.0
    size = other.abs().where(other.isfinite() & (other != 0), math.nan)
    size = size.where(size <= FAR * size.nanmedian(0).values, math.nan)
    size = size.square().nanmean(0).sqrt()
    columns = int(size.isfinite().sum())
    size = size.nan_to_num(nan=1.0)
    one, other = ((each / size).clamp(-FAR, FAR).nan_to_num(nan=2 * FAR) for each in (one, other))
    return one, other, tolerance * max(1, columns) ** 0.5


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """[N, F] in fp64, a complex number as two."""
    import torch

    real = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return real.reshape(len(tensor), -1).double()


def _off_in_place(out: torch.Tensor, ref: torch.Tensor, tolerance: float) -> float:
    if len(out) != len(ref) or not len(ref):
        return float(len(out) != len(ref))
    one, other, near = _rows(out, ref, tolerance)
    return float(((one - other).norm(dim=1) > near).double().mean())


def _without_counterpart(out: torch.Tensor, ref: torch.Tensor, tolerance: float) -> float:
    if not len(out) or not len(ref):
        return float(len(out) != len(ref))
    one, other, near = _rows(out, ref, tolerance)
    if other.shape[1] == 1 and len(one) == len(other):
        mine, theirs = one.sort(0).values, other.sort(0).values
        limit = near * (5 * theirs.abs() + 1e-3).clamp_max(1.0)  # a score among boxes in pixels is held to its own size
        return float(((mine - theirs).abs() > limit).double().mean())
    return max(_lonely(one, other, near), _lonely(other, one, near))


def _lonely(rows: torch.Tensor, others: torch.Tensor, near: float) -> float:
    import torch

    step = max(1, len(rows) * len(others) // MAX_DISTANCES)
    apart = torch.cdist(rows[::step], others, compute_mode="donot_use_mm_for_euclid_dist")
    return float((apart.min(1).values > near).double().mean())


def has_order(ref: torch.Tensor) -> bool:
    """Whether there is any order in it: several entries along the last dimension that can be sorted."""
    return ref.dim() > 0 and ref.shape[-1] > 1 and not ref.is_complex()


def displaced(out: torch.Tensor, ref: torch.Tensor) -> tuple[float, float]:
    """How far the entries of each list along the last dimension moved, as a share of its length, on average;

    and what one swap of neighbours in each list comes to. Integers are what is listed; floating values are scores that
    put their places in an order. What is missing moved by the whole length.
    """
    import torch

    length = ref.shape[-1]
    out, ref = out.reshape(-1, length), ref.reshape(-1, length)
    if ref.is_floating_point():
        out, ref = (each.double().argsort(stable=True, dim=-1, descending=True) for each in (out, ref))
    (mine, places), (own, wanted) = (each.long().sort(stable=True, dim=-1) for each in (out, ref))
    # The first of several like entries (what fills a list up, say) is held against the first, the second the second.
    nth = torch.arange(length) - torch.searchsorted(own, own)
    at = torch.searchsorted(mine, own) + nth
    there = (at < length) & (mine.gather(-1, at.clamp_max(length - 1)) == own)
    moved = (places.gather(-1, at.clamp_max(length - 1)) - wanted).abs().where(there, length)
    return float(moved.double().mean()) / length, 2 / length**2 if length > 1 else 0.0
