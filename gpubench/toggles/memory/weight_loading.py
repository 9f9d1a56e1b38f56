"""How the weights get to the device: as the build makes them, or from a file, in fp32 or in their final dtype.

The weights that the build has made are written to a file in the run's folder for temporary files and given up; then the
printed lines load them. Their time and memory are figures of the row (`load_time_s`, `load_peak_bytes`). The file has
just been written, so that it is read from the kernel's page cache, not from a disk: what is compared is the work of
loading. A mapped file is read when it is looked at, so that looking once at each page of it counts as loading.

In fp32 the file's dtype is the final one, and there is nothing to convert: `fp32-convert` runs beside weights of half
precision only.
"""

from __future__ import annotations

import gc
import importlib.util
import re
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gpubench.measure.memory import host_memory, in_use, reset_device_peak, reset_host_peak
from gpubench.report.model import Value
from gpubench.text import plural
from gpubench.toggles.printed import cast_model, run_lines
from gpubench.toggles.toggle import EvidenceResult, Requirement, Scope, Stage, Toggle
from gpubench.workloads.building import has_complex

if TYPE_CHECKING:
    import torch
    from torch import nn

    from gpubench.toggles.model_context import ModelContext

_NOTE = "weight_loading"
_PAGE = 4096  # bytes; the smallest page of any system that torch runs on
_HALVES: dict[str, str] = {"bf16-weights": "torch.bfloat16", "fp16-weights": "torch.float16"}
_FILE: dict[Value, str] = {"fp32-convert": "weights-fp32.safetensors", "safetensors-final": "weights.safetensors"}


@dataclass
class _Load:
    """What was loaded."""

    tensors: list[weakref.ref[torch.Tensor]]
    left: list[str]  # names of weights that were not given up and loaded
    unloaded: list[str]  # names of those that were given up and did not come back
    file_dtypes: set[str]  # of floating-point weights, in the file
    dtypes: set[str]  # the same, when they were loaded
    mapped: int | None  # tensors whose memory is the file; None where a device has its own


def has_safetensors(_: Scope) -> str | None:
    """The package safetensors is installed."""
    there = importlib.util.find_spec("safetensors") is not None
    return None if there else "needs the package safetensors (pip install 'gpubench-torch[loading]')"


def _lines(value: Value, path: str, dtype: str, *, has_complex: bool) -> str:
    loaded = f"load_file({path!r}, device=str(device))"
    lines = f"""from safetensors.torch import load_file  # the model had better be built under torch.device("meta")
model.load_state_dict({loaded}, strict=False, assign=True)"""
    if value == "fp32-convert":
        return f"{lines}\n{cast_model(dtype, has_complex)}"
    return lines


def _usage(value: Value, scope: Scope | None) -> str:
    if value == "built":
        return "# weight_loading: built, so the weights are as the code makes them"
    complex_weights = scope is not None and scope.workload.complex_weights
    return _lines(value, _FILE[value], "torch.bfloat16", has_complex=complex_weights)


def _replace(model: nn.Module, new: Mapping[int, torch.Tensor]) -> None:
    """Puts `new[id(weight)]` in the place of each weight, everywhere that layers share it."""
    for module in model.modules():
        for name, weight in [*module._parameters.items(), *module._buffers.items()]:
            if weight is not None and id(weight) in new:
                setattr(module, name, new[id(weight)])  # not into the dictionary: an LSTM has a list of its own too


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights that a file of the model has, each once, by its first name."""
    import torch

    first: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    for name, weight in state.items():
        if isinstance(weight, torch.Tensor):
            first.setdefault(id(weight), name)
    return {name: state[name] for name in first.values()}


def _can_be_saved(weight: torch.Tensor) -> bool:
    import torch

    plain = type(weight) in (torch.Tensor, torch.nn.Parameter) and weight.layout is torch.strided
    return plain and not weight.is_complex() and not weight.is_quantized and weight.device.type != "meta"


def apply(context: ModelContext, value: Value) -> None:
    """Writes the weights to a file, gives them up, and loads them by the printed lines."""
    if value == "built":
        return
    import torch
    from safetensors.torch import save_file

    model = context.model
    weights = _weights(model)
    saved = {name: weight for name, weight in weights.items() if _can_be_saved(weight)}
    left = [name for name in weights if name not in saved]
    strides = {name: weight.stride() for name, weight in saved.items() if not weight.is_contiguous()}
    with tempfile.TemporaryDirectory(prefix="gpubench-weights-") as folder:
        path = Path(folder, _FILE[value])
        as_stored = torch.float32 if value == "fp32-convert" else None
        save_file({name: _stored(weight, as_stored) for name, weight in saved.items()}, path)
        given_up = {name: _on_meta(weight) for name, weight in saved.items()}
        _replace(model, {id(weight): given_up[name] for name, weight in saved.items()})
        del weights, saved
        dtype = _HALVES.get(str(context.configuration.get("precision")), "torch.float32")
        lines = _lines(value, str(path), dtype, has_complex=has_complex(model))

        def load() -> None:
            run_lines(lines, model=model, device=context.device)
            for weight in _weights(model).values():
                _look_at(weight)

        _measure(context, load)
        found = {name: weight for name, weight in _weights(model).items() if name in given_up}
        _replace(model, {id(given_up[name]): weight for name, weight in found.items()})  # where layers share one
        context.notes[_NOTE] = _Load(
            tensors=[weakref.ref(weight) for weight in found.values()],
            left=left,
            unloaded=[name for name in given_up if name not in found or found[name].is_meta],
            file_dtypes=_dtypes_in(path),
            dtypes={_word(weight.dtype) for weight in found.values() if weight.is_floating_point()},
            mapped=_mapped(path, found.values()) if context.device.type == "cpu" else None,
        )
    for name, stride in strides.items():  # a file has no layouts
        weight = found[name]
        weight.data = torch.empty_strided(weight.shape, stride, dtype=weight.dtype, device=weight.device).copy_(weight)


def _stored(weight: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    value = weight.detach().cpu()
    return (value.to(dtype) if dtype and value.is_floating_point() else value).contiguous()


def _on_meta(weight: torch.Tensor) -> torch.Tensor:
    import torch

    nothing = torch.empty_like(weight, device="meta", requires_grad=False)
    return torch.nn.Parameter(nothing, weight.requires_grad) if isinstance(weight, torch.nn.Parameter) else nothing


def _look_at(weight: torch.Tensor) -> None:
    """Reads a byte of each page."""
    import torch

    value = weight.detach()
    if value.device.type == "cpu" and value.layout is torch.strided and value.is_contiguous() and value.numel():
        value.reshape(-1).view(torch.uint8)[::_PAGE].sum()


def _measure(context: ModelContext, load: Callable[[], None]) -> None:
    """Runs `load` and notes its time and by how much memory grew at its peak: the device's, or else resident."""
    import torch

    device, on_gpu = context.device, context.device.type == "cuda"
    gc.collect()
    reset_device_peak(device)
    problem = "" if on_gpu else reset_host_peak()
    before = in_use(device) if on_gpu else host_memory().resident
    start = time.perf_counter()
    load()
    if on_gpu:
        torch.cuda.synchronize(device)
    context.load_time_s = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else host_memory().peak
    if before is not None and peak is not None and not problem:
        context.load_peak_bytes = max(0, peak - before)


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtypes_in(path: Path) -> set[str]:
    """The dtypes of the floating-point tensors of a file, as torch calls them."""
    from safetensors import safe_open

    words = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    with safe_open(path, framework="pt") as file:
        stored = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - it is no mapping
    return {words.get(name, name) for name in stored if "F" in name}


def _mapped(path: Path, weights: Iterable[torch.Tensor]) -> int | None:
    """How many of the weights have their memory in the mapped file; None where the system does not tell."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    rows = re.findall(rf"^(\w+)-(\w+) .*{re.escape(str(path))}", maps, re.MULTILINE)
    places = [(int(start, 16), int(end, 16)) for start, end in rows]
    return sum(any(start <= weight.data_ptr() < end for start, end in places) for weight in weights)


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether the model's weights are those that came from the file, which had the dtype."""
    load = context.notes.get(_NOTE)
    if not isinstance(load, _Load):
        return EvidenceResult(value == "built", "no weights were loaded from a file")
    now = {id(weight) for weight in _weights(context.model).values()}
    there = sum(ref() is not None and id(ref()) in now for ref in load.tensors)
    words = f"{there} of the model's {plural(len(now), 'weight')} are those that were loaded"
    words += f", as {' and '.join(sorted(load.file_dtypes)) or 'no floating-point numbers'} in the file"
    if load.file_dtypes != load.dtypes:
        words += f" and converted to {' and '.join(sorted(load.dtypes))}"
    if load.mapped is not None:
        words += f"; {load.mapped} are the mapped file itself"
    if load.left:
        words += f"; {plural(len(load.left), 'weight')} cannot be stored in a file of safetensors"
    if load.unloaded:
        return EvidenceResult(False, f"{words}; {load.unloaded[0]} did not come back")
    whole = there == len(load.tensors) > 0 and value != "built"
    converted = load.file_dtypes != load.dtypes
    if value == "fp32-convert":
        return EvidenceResult(whole and converted and load.file_dtypes == {"float32"}, words)
    return EvidenceResult(whole and not converted, words)


WEIGHT_LOADING = Toggle(
    name="weight_loading",
    summary="How the weights get to the device, before the first step.",
    values={
        "built": "as the workload builds them, with nothing loaded",
        "fp32-convert": "from a file in fp32, and then converted to the dtype of the row's half-precision weights",
        "safetensors-final": "from a file in their final dtype, straight to the device",
    },
    stage=Stage.DTYPE,
    after=("precision",),  # which says what the final dtype is
    requires={
        "fp32-convert": Requirement(check=has_safetensors),
        "safetensors-final": Requirement(check=has_safetensors),
    },
    prerequisites={"fp32-convert": {"precision": tuple(_HALVES)}},
    apply=apply,
    evidence=evidence,
    usage=_usage,
    claims=("bf16-guide",),
    source="safetensors documentation: load_file; PyTorch documentation: Module.load_state_dict, assign",
)
