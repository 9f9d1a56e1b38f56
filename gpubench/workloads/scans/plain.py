"""The recurrence h[t] = a[t] * h[t-1] + b[t] in plain torch, three ways.

All take a and b [B, T, C] and start (h[-1]) [B, C], and return h [B, T, C]. T is at least 1.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.compiler.disable  # type: ignore[untyped-decorator,unused-ignore]
def loop(a: Tensor, b: Tensor, start: Tensor) -> Tensor:
    """One step of time after the other: the definition, and the reference.

    torch.compile leaves it as it is, by a graph break: unrolled, with operators for every step of every layer, it would
    compile for minutes.
    """
    h, steps = start, []
    for a_t, b_t in zip(a.unbind(1), b.unbind(1), strict=True):  # [B, C]
        h = a_t * h + b_t
        steps.append(h)
    return torch.stack(steps, dim=1)


def log_depth(a: Tensor, b: Tensor, start: Tensor) -> Tensor:
    """log2(T) levels, each over all of time at once, with 2 T multiplications in all.

    Two steps are one step with a[t+1] * a[t] and a[t+1] * b[t] + b[t+1]. So a sequence of half the length gives every
    second state, and these give those between. Source: Blelloch, "Prefix Sums and Their Applications" (1990).
    """
    return _log_depth(a, _from_start(a, b, start))


def _log_depth(a: Tensor, b: Tensor) -> Tensor:
    length = b.shape[1]
    if length == 1:
        return b
    first, second = slice(0, length // 2 * 2, 2), slice(1, None, 2)
    odd = _log_depth(a[:, second] * a[:, first], a[:, second] * b[:, first] + b[:, second])  # states 1, 3, 5, ...
    between = a[:, 2::2] * odd[:, : (length - 1) // 2] + b[:, 2::2]  # states 2, 4, ...
    even = torch.cat((b[:, :1], between), dim=1)
    pairs = torch.stack((even[:, : length // 2], odd), dim=2).flatten(1, 2)
    return torch.cat((pairs, even[:, length // 2 :]), dim=1) if length % 2 else pairs


def associative(a: Tensor, b: Tensor, start: Tensor) -> Tensor:
    """torch's own associative scan, a prototype in torch 2.13: its parallel form in plain torch operators on a CPU,
    which gradients pass through; on a GPU the one that torch.compile makes a kernel of (not tried here yet)."""
    from torch._higher_order_ops.associative_scan import associative_scan

    if not b.numel():  # where its parallel form fails
        return a * start.unsqueeze(1) + b
    mode = "pointwise" if b.device.type == "cuda" else "generic"
    _, h = associative_scan(_two_steps, (a, _from_start(a, b, start)), dim=1, combine_mode=mode)
    states: Tensor = h
    return states


def _two_steps(early: tuple[Tensor, Tensor], late: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return early[0] * late[0], early[1] * late[0] + late[1]


def _from_start(a: Tensor, b: Tensor, start: Tensor) -> Tensor:
    """b with h[-1] taken into its first step, so that the recurrence may begin at zero."""
    return torch.cat((b[:, :1] + a[:, :1] * start.unsqueeze(1), b[:, 1:]), dim=1)
