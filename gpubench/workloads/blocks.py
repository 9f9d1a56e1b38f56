"""The blocks of a model: modules of one kind that follow one another in a list, as layers of a transformer do."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from gpubench.workloads.building import plain_name

if TYPE_CHECKING:
    from torch import nn

# Of torch.nn itself these are blocks; the others (a convolution in an nn.Sequential) are layers of one.
_TORCH_BLOCKS = ("TransformerEncoderLayer", "TransformerDecoderLayer")


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks by dotted name, in order: each the outermost of its kind, in a list, and not the only one there is.

    A block has parts of its own and parameters.
    """
    from torch import nn

    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if inside or not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        for child, block in module.named_children():
            if _is_block(block):
                found[f"{name}.{child}".lstrip(".")] = block
    kinds = Counter(map(type, found.values()))
    return {plain_name(name): block for name, block in found.items() if kinds[type(block)] > 1}


def _is_block(module: nn.Module) -> bool:
    from torch import nn

    if isinstance(module, nn.ModuleList | nn.Sequential | nn.ModuleDict):
        return False
    if type(module).__module__.startswith("torch.nn.") and type(module).__name__ not in _TORCH_BLOCKS:
        return False
    return any(True for _ in module.children()) and any(True for _ in module.parameters())
