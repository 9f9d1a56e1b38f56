"""Query, key and value layers of an attention that are separate, though one matrix product would do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gpubench.workloads.building import plain_name

if TYPE_CHECKING:
    import torch
    from torch import nn

NAMES = (
    ("to_q", "to_k", "to_v"),
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q", "k", "v"),
    ("wq", "wk", "wv"),
)


def projections(model: nn.Module) -> list[list[str]]:
    """The dotted names of such layers, by attention: of one input width, and all with a bias or all without.

    Where that of the query differs it is left out: it is a cross-attention's, whose key and value have one input.
    """
    found: list[list[str]] = []
    for name, module in model.named_modules():
        children = dict(module.named_children())
        for names in NAMES:
            layers = [(part, children.get(part)) for part in names]
            for chosen in (layers, layers[1:]):
                if _alike([layer for _, layer in chosen]):
                    found.append([plain_name(f"{name}.{part}".lstrip(".")) for part, _ in chosen])
                    break
    return found


def _alike(layers: Sequence[object]) -> bool:
    from torch import nn

    linear = [layer for layer in layers if type(layer) is nn.Linear]
    kinds = {(layer.in_features, layer.bias is None, layer.weight.dtype) for layer in linear}
    return len(linear) == len(layers) and len(kinds) == 1 and len(set(map(id, linear))) == len(linear)


class Fed:
    """What the layers of `groups` are called with, call by call."""

    def __init__(self, groups: Sequence[Sequence[str]]) -> None:
        self.groups = groups
        self._inputs: dict[str, list[tuple[torch.Tensor, int]]] = {name: [] for names in groups for name in names}

    def call(self, name: str, inputs: Sequence[Any]) -> None:
        """Notes a call of the module of that name, with the version of what it gets: that may be changed in place."""
        if name in self._inputs and inputs:
            version = 0 if inputs[0].is_inference() else inputs[0]._version
            self._inputs[name].append((inputs[0], version))

    def with_one_input(self) -> tuple[tuple[str, ...], ...]:
        """Of each group the layers that were called with the same tensors."""
        found = []
        for names in self.groups:
            for number, first in enumerate(names[:-1]):
                same = tuple(name for name in names[number:] if self._same(first, name))
                if len(same) > 1:
                    found.append(same)
                    break
        return tuple(found)

    def _same(self, one: str, other: str) -> bool:
        mine, theirs = self._inputs[one], self._inputs[other]
        return len(mine) == len(theirs) > 0 and all(
            first is second and early == late for (first, early), (second, late) in zip(mine, theirs, strict=True)
        )
