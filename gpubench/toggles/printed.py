"""Lines that are printed for the user and run by the worker: one text, so that what is printed is what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from keyword import iskeyword
from typing import Any


def run_lines(lines: str, **names: Any) -> dict[str, Any]:
    """Runs `lines` as a user's script would, with `torch` and `names` known; the names that are known afterwards."""
    import torch

    known = {"torch": torch, **names}
    exec(compile(lines, "<lines that gpubench prints>", "exec"), known)
    return known


def each_input(change: str, nested: bool) -> str:
    """The line that changes each tensor `x` of `inputs` as the expression `change` says.

    nested: `inputs` is no plain tuple of tensors.
    """
    if nested:
        return (
            "from torch.utils._pytree import tree_map_only  # walks tuples, lists, mappings, registered dataclasses\n"
            f"inputs = tree_map_only(torch.Tensor, lambda x: {change}, inputs)"
        )
    return f"inputs = tuple({change} for x in inputs)"


def cast_model(dtype: str, has_complex: bool) -> str:
    """The lines that convert the weights to `dtype`, but complex ones, which `model.to` would make real."""
    if not has_complex:
        return f"model = model.to({dtype})"
    return f"""for weight in [*model.parameters(), *model.buffers()]:
    if weight.is_floating_point():  # complex ones stay
        weight.data = weight.data.to({dtype})"""


def expression(name: str) -> str:
    """The submodule of `model` with that dotted name, as Python: `model.encoder`, `model.get_submodule('layers.0')`."""
    parts = ["model", *name.split(".")] if name else ["model"]
    plain = all(part.isidentifier() and not iskeyword(part) for part in parts)
    return ".".join(parts) if plain else f"model.get_submodule({name!r})"


def each_submodule(names: Sequence[str]) -> str:
    """Those submodules of `model`, as a tuple in Python: `(*model.blocks[:12],)`."""
    lists: dict[str, list[str]] = {}
    for name in names:
        parent, _, child = name.rpartition(".")
        lists.setdefault(parent, []).append(child)
    parts: list[str] = []
    for parent, children in lists.items():
        if children == [str(index) for index in range(len(children))]:
            parts.append(f"*{expression(parent)}[:{len(children)}]")
        else:
            parts += [expression(f"{parent}.{child}" if parent else child) for child in children]
    return f"({', '.join(parts)},)"
