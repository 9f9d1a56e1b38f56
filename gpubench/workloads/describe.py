"""The facts of a loaded workload that decide which toggles apply. Needs torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from gpubench.errors import GpubenchError
from gpubench.workloads.building import build_model, set_mode
from gpubench.workloads.loader import Loaded
from gpubench.workloads.observe import Observed, observe, short
from gpubench.workloads.source import blaming
from gpubench.workloads.workload_facts import Mode, WorkloadFacts

if TYPE_CHECKING:
    from torch import nn


def describe(loaded: Loaded, mode: Mode, batch_size: int | None = None) -> WorkloadFacts:
    """The facts of a workload in one mode, at `batch_size` (None: its own).

    The model is built on the meta device if its code allows that, so that even a large one needs no memory.
    Raises GpubenchError if the mode, a batch, or a compile target does not fit the workload.
    """
    workload = loaded.workload
    if mode not in workload.modes:
        raise GpubenchError(
            f"Workload {workload.name!r} cannot do {mode}: it has no {'loss' if mode == 'training' else 'infer'}.",
            f"Its modes: {', '.join(workload.modes)}.",
        )
    count = workload.batch_size if batch_size is None else batch_size
    if count < 1:
        raise GpubenchError(f"The batch size is {count}.", "Give a whole number of at least 1.")
    model = _build(loaded)
    _check_targets(loaded, model)
    parameter_count, shapes = _count_parameters(loaded, model), _input_shapes(loaded, count)
    note = set_mode(model, mode)
    seen = observe(loaded, mode, model)
    tiling = workload.tiling if mode == "inference" else None
    return WorkloadFacts(
        reference=loaded.reference,
        name=workload.name,
        item=workload.item,
        mode=mode,
        modes=cast("list[Mode]", list(workload.modes)),
        size=loaded.size,
        parameters=dict(loaded.parameters),
        batch_size=count,
        parameter_count=parameter_count,
        input_shapes=shapes,
        convolution_dimensions=_convolution_dimensions(model) if seen.device is None else seen.convolution_dimensions(),
        attention=seen.attention() or _has_attention(model),
        dtypes=_dtypes(model, seen),
        autocast=[short(dtype) for dtype in seen.autocast],
        compiles_itself=seen.compiled or _is_compiled(model),
        notes=[note] if note else [],
        tile_sizes=list(tiling.sizes) if tiling else [],
        tile_multiple=tiling.multiple if tiling else 1,
        tile_overlap=tiling.overlap if tiling else 0,
        resolution=workload.resolution,
        source_hash=loaded.source_hash,
    )


def _build(loaded: Loaded) -> nn.Module:
    import torch
    from torch import nn

    try:
        with torch.device("meta"):
            model: Any = build_model(loaded.workload)
    except Exception:  # noqa: BLE001 - code that reads values fails on the meta device
        with blaming(f"Building the model of {loaded.reference}", loaded.file):
            model = build_model(loaded.workload)
    if not isinstance(model, nn.Module):
        raise GpubenchError(
            f"The build of workload {loaded.workload.name!r} returned an object of type {type(model).__name__}.",
            "It must return a torch.nn.Module.",
        )
    return model


def _count_parameters(loaded: Loaded, model: nn.Module) -> int:
    from torch.nn.parameter import is_lazy

    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise GpubenchError(
            f"The model of {loaded.reference} has lazy layers, whose parameters have no shape yet.",
            "Call it once on an example inside build, or give the layers their sizes.",
        )
    return sum(parameter.numel() for parameter in model.parameters())


def _check_targets(loaded: Loaded, model: nn.Module) -> None:
    modules = dict(model.named_modules())
    for target in loaded.workload.compile_targets:
        if target not in modules:
            children = ", ".join(name for name, _ in model.named_children()) or "none"
            raise GpubenchError(
                f"The model of workload {loaded.workload.name!r} has no submodule {target!r}, its compile target.",
                f'Its own submodules: {children}. "" is the whole model.',
            )


def _input_shapes(loaded: Loaded, batch_size: int) -> list[list[int]]:
    import torch

    name = loaded.workload.name
    with blaming(f"Making the inputs of {loaded.reference}", loaded.file):
        batch: Any = loaded.workload.inputs(batch_size, torch.Generator().manual_seed(0))
    if not isinstance(batch, tuple) or not batch or not all(isinstance(part, torch.Tensor) for part in batch):
        raise GpubenchError(
            f"The inputs of workload {name!r} are of type {type(batch).__name__}.",
            "They must be a tuple of at least one tensor.",
        )
    shapes = [list(tensor.shape) for tensor in batch]
    for shape in shapes:
        if not shape or shape[0] != batch_size:
            raise GpubenchError(
                f"An input of workload {name!r} has shape {shape} for a batch of {batch_size}.",
                "The first dimension of every input must be the batch.",
            )
    return shapes


def _convolution_dimensions(model: nn.Module) -> list[int]:
    """By the classes of the modules, for a model whose step cannot be watched here."""
    from torch.nn.modules.conv import _ConvNd

    return sorted({len(each.kernel_size) for each in model.modules() if isinstance(each, _ConvNd)})


def _dtypes(model: nn.Module, seen: Observed) -> list[str]:
    """What the watched step computed in; by the parameters, where it could not be watched.

    On the meta device attention in bf16 is watched in fp32, which does not happen where there is an operator for it.
    """
    stored = sorted({short(each.dtype) for each in model.parameters() if each.is_floating_point()})
    if seen.device is None:
        return stored
    found = seen.dtypes()
    return [each for each in found if each in stored] or found if seen.device == "meta" else found


def _is_compiled(model: nn.Module) -> bool:
    """Whether a module is compiled, by its class; compiled functions are not visible without running the model."""
    return any(
        type(each).__name__ == "OptimizedModule" or each._compiled_call_impl is not None for each in model.modules()
    )


def _has_attention(model: nn.Module) -> bool:
    """Whether a module's class is attention; function calls are not visible without running the model."""
    from torch import nn

    return any(isinstance(m, nn.MultiheadAttention) or "Attention" in type(m).__name__ for m in model.modules())
