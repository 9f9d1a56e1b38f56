"""Random values for parameters that are zero or tiny, while outputs are checked.

A last layer that begins at zero makes the output zero whatever goes on before it, and a residual branch scaled by 1e-5
makes it the input. Nothing could be seen then. So the reference and what is measured get the same small random values
there, and the model's own are put back, in place, before anything is timed.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from gpubench.workloads.building import plain_name

if TYPE_CHECKING:
    import torch
    from torch import nn

TINY = 1e-3  # a parameter without a larger value; random weights of layers are larger, up to 1e7 inputs
CONSTANT = 0.05  # a parameter that has one value below it throughout is a scale that was made small on purpose
NOTHING: Mapping[str, Callable[[torch.Tensor], None]] = MappingProxyType({})
SIZE = 0.5  # of a layer's weights, relative to those that keep the size of its input; torch's own have 0.58


class Filled:
    """The zero and tiny parameters of a model, filled until `restore` is called."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        self._model = model
        self._own = {
            plain_name(name): parameter.detach().clone()
            for name, parameter in model.named_parameters()
            if _hides(name, parameter.detach())
        }
        # Residual branches add up: each gets its share, so that a deep model's output stays of one size.
        share = len(self._own) ** -0.5 if self._own else 1.0
        self._random = {name: share * _values(name, own, seed) for name, own in self._own.items()}
        self.fill()

    @property
    def names(self) -> list[str]:
        """Dotted names of the parameters that are filled."""
        return list(self._own)

    def fill(self) -> None:
        """Puts the random values in."""
        self._put(self._random)

    def restore(self, stores: Mapping[str, Callable[[torch.Tensor], None]] = NOTHING) -> None:
        """Puts the model's own values back. `stores`: see `ModelContext`."""
        self._put(self._own, stores)

    def _put(
        self, values: dict[str, torch.Tensor], stores: Mapping[str, Callable[[torch.Tensor], None]] = NOTHING
    ) -> None:
        """In place, so that compiled code and CUDA graphs see them, whatever dtype and device they have by now."""
        import torch

        now = {plain_name(name): parameter for name, parameter in self._model.named_parameters()}
        with torch.no_grad():
            for name, value in values.items():
                if name in now and now[name].shape == value.shape:
                    stores.get(name, now[name].copy_)(value)


def _hides(name: str, parameter: torch.Tensor) -> bool:
    """Whether what comes before it may not show in the output. A bias is only added, so that it hides nothing."""
    import torch

    if "bias" in name.rpartition(".")[2] or not parameter.is_floating_point() or not parameter.numel():
        return False
    if parameter.layout is not torch.strided or parameter.itemsize < 2 or parameter.is_meta:
        return False
    if parameter.is_inference() or 0 in parameter.stride():  # not to be written to
        return False
    first, last = (float(parameter[(index,) * parameter.dim()]) for index in (0, -1))
    if max(abs(first), abs(last)) >= CONSTANT:
        return False
    if first == last and bool((parameter == first).all()):
        return True
    return max(abs(first), abs(last)) < TINY and float(parameter.abs().max()) < TINY


def _values(name: str, parameter: torch.Tensor, seed: int) -> torch.Tensor:
    import torch

    chance = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
    drawn = torch.empty(parameter.shape)
    layer = parameter.dim() > 1 and name.endswith("weight")
    if not layer and sum(size > 1 for size in parameter.shape) < 2:
        return drawn.uniform_(0.5, 1.5, generator=chance)  # a scale: it may be a divisor or under a root
    inputs = parameter.numel() // parameter.shape[0]
    return drawn.normal_(0.0, SIZE / inputs**0.5, generator=chance)
