"""A few numbers for each tensor of a model and its inputs, by which two processes see that both have the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpubench.measure.outputs import collect

if TYPE_CHECKING:
    import torch
    from torch import nn

Fingerprint = dict[str, list[float]]  # "parameter encoder.weight" -> its numbers

INPUT = "input"  # what the names of inputs begin with
SAMPLES = 32  # values of each tensor, evenly apart: where values only changed places, the norms are the same
SAME = 1e-4  # relative: an initialization that decomposes matrices rounds differently with more threads


def of(model: nn.Module, batches: Sequence[Any]) -> Fingerprint:
    """The numbers of the parameters and buffers, in the order of the model, and of the inputs of every batch."""
    named: list[tuple[str, torch.Tensor]] = [(f"parameter {name}", value) for name, value in model.named_parameters()]
    named += [(f"buffer {name}", value) for name, value in model.named_buffers()]
    for index, batch in enumerate(batches):
        named += [
            (f"{path.replace('.', ' ', 1)} of batch {index}", value)
            for path, value in collect(batch, INPUT).tensors.items()
        ]
    return {name: numbers(value) for name, value in named if is_readable(value)}


def is_readable(tensor: torch.Tensor) -> bool:
    """Whether it has values that can be read one by one (a sparse, nested, quantized or lazy tensor has not)."""
    import torch
    from torch.nn.parameter import is_lazy

    strided = tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_quantized
    return strided and not is_lazy(tensor) and tensor.device.type != "meta"


def numbers(tensor: torch.Tensor) -> list[float]:
    """How many values it has, their norm, and some of them."""
    import torch

    value = tensor.detach()
    value = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
    if not value.is_floating_point():
        value = value.double()
    elif value.element_size() < torch.float32.itemsize:
        value = value.float()
    flat = value.reshape(-1)
    if not flat.numel():
        return [0.0]
    some = flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES].double().tolist()
    return [float(flat.numel()), float(torch.linalg.vector_norm(flat)), *some]


def difference(
    first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]], *, rounding: float = SAME
) -> str:
    """The name of the first tensor that the two do not have alike, up to `rounding`; empty where there is none."""
    for name, one in first.items():
        if name not in second or not alike(one, second[name], rounding):
            return name
    return next((name for name in second if name not in first), "")


def alike(one: Sequence[float], other: Sequence[float], rounding: float) -> bool:
    """Whether the numbers of two tensors are the same but for `rounding`, relative to the values' usual size."""
    if len(one) != len(other) or one[0] != other[0]:
        return False
    if not one[0]:
        return True
    norm = one[1] if math.isfinite(one[1]) else 0.0
    limits = [0.0, rounding * norm, *[rounding * norm / math.sqrt(one[0])] * (len(one) - 2)]
    return all(
        mine == theirs or (math.isnan(mine) and math.isnan(theirs)) or abs(mine - theirs) <= limit
        for mine, theirs, limit in zip(one, other, limits, strict=True)
    )
