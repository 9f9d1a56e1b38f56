"""The tensors in whatever a step returns, each with its path; what holds none is named, so that nothing is dropped."""

from __future__ import annotations

import dataclasses
import inspect
import json
import numbers
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set, ValuesView
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpubench.errors import GpubenchError
from gpubench.text import kind_and_message, printable

if TYPE_CHECKING:
    import torch

    Tensors = Mapping[str, torch.Tensor]

MAX_TENSORS = 10_000  # of one step; a step that returns more returns its own bookkeeping
MAX_SHOWN = 16  # that a report or a sentence lists
MAX_DEPTH = 32  # of nesting; an object that leads to itself is not followed at all
_NO_ORDER = "a set has no order: return a list"
_NOT_RUN = "it is computed only where it is read, which the step does not do: return a list"
_PRIVATE = "it is private, beside public tensors: return it by itself"
_KEYS = (str, int, float, Enum)  # their text is the same in every process


@dataclass
class Found:
    """What a step returned."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)  # path -> tensor
    left_out: dict[str, str] = field(default_factory=dict)  # path -> why it cannot be compared
    objects: set[int] = field(default_factory=set)  # plain ones that were looked into: they may refer to each other

    def add(self, path: str, tensor: torch.Tensor) -> None:
        """One tensor; two keys with the same text get two names."""
        while path in self.tensors:
            path += "'"
        self.tensors[path] = tensor


def collect(result: Any, path: str = "output") -> Found:
    """The tensors in `result`, as they are, with the path of each: `output`, `output.boxes`, `output.0.1`.

    Tuples, lists, mappings, dataclasses and plain objects are followed; numbers and arrays become tensors.
    None is nothing. Everything else is in `left_out`, with a clause that says why.
    """
    found = Found()
    _walk(result, path, found, ())
    return found


def no_tensor(result: Any) -> GpubenchError:
    """What to say of an inference step whose `result` holds nothing that can be compared."""
    inside = [f"{path}: {why}" for path, why in collect(result).left_out.items() if path != "output"]
    kind = "None" if result is None else f"an object of type {type(result).__name__} without tensors"
    return GpubenchError(
        f"The inference step returned {kind}{f' ({listed(inside)})' if inside else ''}.",
        "Return a tensor (latent_dist.mode(), say), or tensors in tuples, lists, mappings, dataclasses or objects.",
    )


def listed(names: Iterable[str]) -> str:
    """Names in one line, the first of many."""
    named = list(names)
    more = len(named) - MAX_SHOWN
    return ", ".join(named[:MAX_SHOWN] + ([f"{more} more"] if more > 0 else [])) or "empty"


def on_cpu(found: Found) -> Found:
    """The same with a dense copy of each tensor on the CPU, which no later step can overwrite."""
    copied = Found(left_out=dict(found.left_out))
    for path, tensor in found.tensors.items():
        try:
            copied.tensors[path] = _dense(tensor.detach()).cpu().clone()
        except Exception as error:  # noqa: BLE001 - whatever a special kind of tensor refuses
            why = "it is on the meta device and has no values" if tensor.is_meta else kind_and_message(error)
            copied.left_out[path] = f"its values cannot be read: {why}"
    return copied


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    if tensor.is_nested:
        return torch.cat([part.flatten() for part in tensor.unbind()])
    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


def _walk(value: Any, path: str, found: Found, above: tuple[int, ...]) -> None:
    import torch

    if value is None:
        return
    if len(found.tensors) >= MAX_TENSORS:
        found.left_out.setdefault("output", f"it holds more than {MAX_TENSORS} tensors; the others are not compared")
    elif isinstance(value, torch.Tensor):
        found.add(path, value)
    elif (array := _numbers(value)) is not None:
        found.add(path, array)
    elif id(value) in above or len(above) > MAX_DEPTH:
        found.left_out[path] = "it contains itself"
    elif isinstance(value, str | bytes):
        found.left_out[path] = "it is text"
    elif isinstance(value, Set):
        found.left_out[path] = _NO_ORDER
    elif isinstance(value, Iterator):
        found.left_out[path] = f"a {type(value).__name__}: {_NOT_RUN}"
    elif (parts := _parts(value)) is not None:
        for key, part in parts:
            _walk(part, f"{path}.{key}", found, (*above, id(value)))
    else:
        _look_inside(value, path, found, (*above, id(value)))


def _numbers(value: Any) -> torch.Tensor | None:
    """A tensor of the number, the numbers or the array that `value` is; None if it is something else."""
    import numpy as np
    import torch

    single = isinstance(value, numbers.Number)
    listed = isinstance(value, list | Set) and bool(value) and all(isinstance(each, numbers.Number) for each in value)
    # Of the class: some objects answer for attributes that they have not.
    if not (single or listed or hasattr(type(value), "__array__") or hasattr(type(value), "__array_interface__")):
        return None
    try:
        array = np.asarray(sorted(value) if isinstance(value, Set) else value)
        return torch.from_numpy(np.array(array, order="C")) if array.dtype.kind in "biufc" else None
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def _parts(value: Any) -> Iterable[tuple[str, Any]] | None:
    """The named parts of a container; None if it is none."""
    if isinstance(value, Mapping):
        return [(_key(key, index), part) for index, (key, part) in enumerate(value.items())]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=False))
    if isinstance(value, Sequence | ValuesView):
        return [(str(index), part) for index, part in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(each.name, getattr(value, each.name, None)) for each in dataclasses.fields(value)]
    return None


def _key(key: Any, index: int) -> str:
    return printable(str(key)) if isinstance(key, _KEYS) else f"{type(key).__name__}-{index}"


def _look_inside(value: Any, path: str, found: Found, above: tuple[int, ...]) -> None:
    """The tensors among the attributes of a plain object: public ones first, and private ones where none is public.

    Private tensors beside public ones are named, but for other names of the same memory.
    """
    named = {} if id(value) in found.objects else _attributes(value)
    found.objects.add(id(value))
    public, private = (Found(objects=found.objects) for _ in range(2))
    for name, part in named.items():
        _walk(part, f"{path}.{name}", private if name.startswith("_") else public, above)
    for name, tensor in public.tensors.items():
        found.add(name, tensor)
    seen = {_place(tensor) for tensor in public.tensors.values()}
    hidden = {name: tensor for name, tensor in private.tensors.items() if _place(tensor) not in seen}
    if any(tensor.dim() for tensor in public.tensors.values()):
        found.left_out |= {name: _PRIVATE for name, tensor in hidden.items() if tensor.dim()}
        return
    for name, tensor in hidden.items():
        found.add(name, tensor)
    if not public.tensors and not hidden:
        found.left_out[path] = f"an object of type {type(value).__name__} without tensors"


def _place(tensor: torch.Tensor) -> object:
    """The same for two names of one tensor; of some special kinds of tensor only where they are one object."""
    try:
        return tensor.data_ptr() or id(tensor), tuple(tensor.shape)
    except (RuntimeError, NotImplementedError):
        return id(tensor)


def _attributes(value: Any) -> dict[str, Any]:
    from torch import nn

    closed: tuple[type, ...] = (nn.Module, type, types.ModuleType, types.FunctionType, Enum)
    if isinstance(value, closed) or inspect.isbuiltin(value):
        return {}
    slots = [name for each in type(value).__mro__ for name in getattr(each, "__slots__", ()) if isinstance(name, str)]
    named = {name: getattr(value, name) for name in slots if hasattr(value, name)} | getattr(value, "__dict__", {})
    return {name: part for name, part in named.items() if not isinstance(part, closed)}


def save_tensors(tensors: Tensors, folder: Path) -> None:
    """Writes each tensor as `<number>.npy`, floating ones in fp32 or fp64, and the names in order."""
    import numpy as np
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    for index, tensor in enumerate(tensors.values()):
        value = tensor.detach().cpu()
        if value.is_floating_point() and value.dtype is not torch.float64:
            value = value.float()
        if value.dtype is torch.complex32:
            value = value.to(torch.complex64)
        np.save(folder / f"{index}.npy", value.resolve_conj().resolve_neg().numpy())
    (folder / "names.json").write_text(json.dumps(list(tensors)))


def load_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """What `save_tensors` wrote. Nothing is unpickled."""
    import numpy as np
    import torch

    names = json.loads((folder / "names.json").read_text())
    return {
        name: torch.from_numpy(np.load(folder / f"{index}.npy", allow_pickle=False)) for index, name in enumerate(names)
    }
