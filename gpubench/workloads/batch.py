"""A batch as users have it: tensors in tuples, lists, mappings and dataclasses, with numbers, text and None between.

Torch's own pytree walks it, so that a library's registered types (transformers' ModelOutput) are known too.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from gpubench.errors import GpubenchError

if TYPE_CHECKING:
    import torch

    from gpubench.workloads.workload import Workload

PLAIN = (int, float, complex, bool, str, bytes, type(None))  # what may stand beside tensors, and is left as it is


@functools.cache
def dataset_of(make: Callable[[], Any]) -> Any:
    """The dataset that a workload's `dataset` makes, once in a process. Raises GpubenchError where it is none."""
    dataset = make()
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__") or not len(dataset):
        raise GpubenchError(
            f"The dataset is of type {type(dataset).__name__}, which is empty or has no length and items.",
            "Give a function that returns a map-style dataset: `dataset[0]`, `len(dataset)`.",
        )
    return dataset


def items_of(number: int, count: int, length: int) -> list[int]:
    """The indices of batch `number` of `count` items in a dataset, which begins again after its `length` items."""
    return [(number * count + index) % length for index in range(count)]


def make(workload: Workload, count: int, seed: int) -> Any:
    """The batch of that seed on the CPU, the same wherever it is made."""
    import torch

    if workload.dataset is not None:
        from torch.utils.data import default_collate

        dataset = dataset_of(workload.dataset)
        batch = default_collate([dataset[index] for index in items_of(seed, count, len(dataset))])
    elif workload.inputs is not None:
        batch = workload.inputs(count, torch.Generator().manual_seed(seed))
    learn(batch)
    return batch


def learn(batch: Any) -> None:
    """Registers the dataclasses in `batch`, of which pytree knows those that were registered alone."""
    import torch
    from torch.utils._pytree import tree_leaves

    unknown = {type(leaf) for leaf in tree_leaves(batch) if dataclasses.is_dataclass(leaf)}
    for kind in unknown:
        torch.export.register_dataclass(kind)
    if unknown:
        learn(batch)


def tensors(batch: Any) -> list[torch.Tensor]:
    """The tensors of `batch`, in order."""
    import torch
    from torch.utils._pytree import tree_leaves

    return [leaf for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor)]


def map_tensors(function: Callable[[torch.Tensor], torch.Tensor], batch: Any) -> Any:
    """`batch` with `function` of each tensor in its place."""
    import torch
    from torch.utils._pytree import tree_map_only

    return tree_map_only(torch.Tensor, function, batch)


def is_flat(batch: Any) -> bool:
    """Whether `batch` is a tuple of tensors and nothing else."""
    import torch

    return type(batch) is tuple and all(isinstance(part, torch.Tensor) for part in batch)


def leaves(batch: Any) -> Iterator[tuple[str, Any]]:
    """Each leaf of `batch` with its place in words: `0`, `pixel_values`, `1.mask`; the batch itself is ``."""
    from torch.utils._pytree import tree_flatten_with_path

    for path, leaf in tree_flatten_with_path(batch)[0]:
        keys = (getattr(key, "name", getattr(key, "key", getattr(key, "idx", key))) for key in path)
        yield ".".join(map(str, keys)), leaf


def unlike(batch: Any, count: int) -> list[tuple[str, torch.Tensor]]:
    """The tensors, each with its place, that are neither `count` long nor in a list that is."""
    import torch

    if isinstance(batch, list) and len(batch) == count:
        return []
    if isinstance(batch, torch.Tensor):
        return [] if batch.dim() and batch.shape[0] == count else [("", batch)]
    children = _children(batch)
    return [(f"{name}.{place}".rstrip("."), tensor) for name, part in children for place, tensor in unlike(part, count)]


def _children(batch: Any) -> list[tuple[str, Any]]:
    """The parts that `batch` is made of, one level down, each with its name; none of a leaf."""
    from torch.utils._pytree import tree_flatten_with_path

    if isinstance(batch, PLAIN):
        return []
    found = tree_flatten_with_path(batch, is_leaf=lambda part: part is not batch)[0]
    keys = [(path[-1], part) for path, part in found if path]
    return [(str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key)))), part) for key, part in keys]


def can_be_split(batch: Any) -> bool:
    """Whether all tensors have the same length, so that the batch can be cut along it."""
    return len({tensor.shape[0] if tensor.dim() else 0 for tensor in tensors(batch)}) == 1


def split(batch: Any, parts: int) -> list[Any]:
    """`batch` in up to `parts` parts along the first dimension of each tensor, all of which are of one length."""
    length = tensors(batch)[0].shape[0]
    size = -(-length // parts)
    return [
        map_tensors(lambda tensor, start=start: tensor[start : start + size], batch)  # type: ignore[misc]
        for start in range(0, length, size)
    ]
