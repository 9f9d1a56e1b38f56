"""The facts of a loaded workload that decide which toggles apply. Needs torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from gpubench.errors import GpubenchError
from gpubench.measure.order import names
from gpubench.measure.outputs import collect, listed, no_tensor
from gpubench.workloads.batch import PLAIN, is_flat, leaves, make, tensors, unlike
from gpubench.workloads.blocks import blocks
from gpubench.workloads.building import build_model, has_complex, plain_name, set_mode, starred
from gpubench.workloads.loader import Loaded
from gpubench.workloads.observe import Observed, observe, short
from gpubench.workloads.optimizing import facts_of
from gpubench.workloads.projections import projections
from gpubench.workloads.source import blaming
from gpubench.workloads.workload_facts import CompileTarget, Mode, WorkloadFacts

if TYPE_CHECKING:
    from torch import nn

INPUTS = "They must be dense tensors, in tuples, lists, mappings or dataclasses; numbers, text and None may be beside."


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
    _check_parts(loaded, model, workload.stages, "stage")
    _check_parts(loaded, model, workload.compile_targets, "compile target")
    _check_parts(loaded, model, [part for each in workload.optimizers.values() for part in each.parts], "trained part")
    parameter_count = _count_parameters(loaded, model)
    shapes, nested = _inputs(loaded, count)
    note = set_mode(model, mode)
    seen = observe(loaded, mode, model)
    if seen.device and mode == "training":
        _check_loss(loaded, seen)
    not_compared = _check_outputs(loaded, seen) if seen.device and mode == "inference" else {}
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
        nested_inputs=nested,
        complex_weights=has_complex(model),
        convolution_dimensions=_convolution_dimensions(model) if seen.device is None else seen.convolution_dimensions(),
        attention=seen.attention() or _has_attention(model),
        modules=_modules(model),
        parts=_parts(model),
        blocks=len(blocks(model)),
        projections=projections(model) if seen.device is None else [list(names) for names in seen.projections],
        unconvolved=list(_unconvolved(model) if seen.device is None else seen.unconvolved),
        called=list(seen.called),
        misses_targets=bool(seen.called)
        and not any(_reached(model, each, seen.called) for each in workload.compile_targets),
        compile_targets=compile_targets(model, workload.compile_targets),
        block_targets=compile_targets(model, blocks(model)),
        whole_target=compile_targets(model, [""])[0],
        dtypes=_dtypes(model, seen),
        autocast=[short(dtype) for dtype in seen.autocast],
        compiles_itself=seen.compiled or _is_compiled(model),
        notes=[each for each in (note, _unwatched(seen)) if each],
        optimizers=facts_of(workload.optimizers),
        dataset=workload.dataset is not None,
        stages=list(workload.stages),
        own_train_step=workload.train_step is not None,
        tile_sizes=list(tiling.sizes) if tiling else [],
        tile_multiple=tiling.multiple if tiling else 1,
        tile_overlap=tiling.overlap if tiling else 0,
        resolution=workload.resolution,
        source_hash=loaded.source_hash,
        not_compared=not_compared,
    )


def _modules(model: nn.Module) -> dict[str, int]:
    kinds = (type(part).__name__ for part in model.modules() if not any(True for _ in part.children()))
    return dict(sorted(Counter(kinds).items()))


def _parts(model: nn.Module) -> list[str]:
    names = (plain_name(name) for name, _ in model.named_modules(remove_duplicate=False))
    return list(dict.fromkeys(starred(name) for name in names if name))


def compile_targets(model: nn.Module, names: Iterable[str]) -> list[CompileTarget]:
    """What `torch.compile` has to know of the submodules of those dotted names, without what wraps compiled ones."""
    # What torch.compile returned comes before what is in it, which then has the name.
    modules = {plain_name(name): module for name, module in model.named_modules(remove_duplicate=False)}
    plain = [plain_name(name) for name in names]
    return [CompileTarget(name=name, forward_module=_forward_module(modules[name])) for name in plain]


def _forward_module(module: nn.Module) -> str:
    return getattr(module.forward, "__module__", None) or type(module).__module__


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


def _check_parts(loaded: Loaded, model: nn.Module, names: Iterable[str], what: str) -> None:
    modules = dict(model.named_modules(remove_duplicate=False))
    for target in names:
        if target not in modules:
            children = ", ".join(name for name, _ in model.named_children()) or "none"
            raise GpubenchError(
                f"The model of workload {loaded.workload.name!r} has no submodule {target!r}, its {what}.",
                f'Its own submodules: {children}. "" is the whole model.',
            )


def _inputs(loaded: Loaded, batch_size: int) -> tuple[list[list[int]], bool]:
    """The shapes of the input tensors, and whether they are no plain tuple of tensors."""
    name = loaded.workload.name
    with blaming(f"Making the inputs of {loaded.reference}", loaded.file):
        batch = make(loaded.workload, batch_size, 0)
        if differs := _differing(batch, make(loaded.workload, batch_size, 0)) if loaded.workload.dataset else "":
            raise GpubenchError(
                f"{_called(differs)} of workload {name!r} differs when the same items are read again.",
                "Let the dataset draw by the item's index, so that outputs can be compared.",
            )
    for place, part in leaves(batch):
        if kind := _no_input(part):
            raise GpubenchError(
                f"{_called(place)} of workload {name!r} is {kind}.",
                f"{INPUTS} Leave out what is none, and make it in infer or loss of what is there.",
            )
    shapes = [list(tensor.shape) for tensor in tensors(batch)]
    if not shapes:
        raise GpubenchError(f"The inputs of workload {name!r} hold no tensor.", INPUTS)
    for place, tensor in unlike(batch, batch_size):
        raise GpubenchError(
            f"{_called(place)} of workload {name!r} has shape {list(tensor.shape)} for a batch of {batch_size}.",
            "The first dimension of every input must be the batch; tensors of different sizes go in a list that long.",
        )
    return shapes, not is_flat(batch)


def _differing(one: Any, other: Any) -> str:
    """The place of the first tensor that the two batches do not have alike, or nothing."""
    import torch

    for (place, first), (_, second) in zip(leaves(one), leaves(other), strict=True):
        if isinstance(first, torch.Tensor) and not torch.equal(first, second):
            return place or "all"
    return ""


def _called(place: str) -> str:
    return f"Input {place}" if place else "The input"


def _no_input(part: Any) -> str:
    """What `part` is, if it is neither a dense tensor with values nor a constant; else nothing."""
    import torch

    if isinstance(part, PLAIN):
        return ""
    if not isinstance(part, torch.Tensor):
        return f"of type {type(part).__name__}"
    if part.is_nested:
        return "a nested tensor"
    if part.layout is not torch.strided:
        return f"a tensor of layout {part.layout}"
    if part.is_quantized:
        return f"a quantized tensor ({part.dtype})"
    return "a tensor on the meta device, without values" if part.is_meta else ""


def _check_loss(loaded: Loaded, seen: Observed) -> None:
    import torch

    loss = seen.output
    if isinstance(loss, torch.Tensor) and loss.numel() == 1:
        return
    kind = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, torch.Tensor) else f"{type(loss).__name__}"
    raise GpubenchError(
        f"The loss of workload {loaded.workload.name!r} is {'None' if loss is None else kind}.",
        "It must be a tensor of one number, which `backward` starts from.",
    )


def _check_outputs(loaded: Loaded, seen: Observed) -> dict[str, str]:
    """What the step returns that cannot be compared, by its path, and why.

    Raises GpubenchError if nothing can, or if `Workload.compare` names an output that is not there.
    """
    found = collect(seen.output)
    if not found.tensors:
        raise no_tensor(seen.output)
    compare = loaded.workload.compare
    for key in () if isinstance(compare, str) else compare:
        if not any(names(key, name) for name in found.tensors):
            raise GpubenchError(
                f"Workload {loaded.workload.name!r} says how to compare {key!r}, which its step does not return.",
                f"It returns {listed(found.tensors)}.",
            )
    empty = {name: "it is empty" for name, tensor in found.tensors.items() if not tensor.numel()}
    return found.left_out | empty


def _convolution_dimensions(model: nn.Module) -> list[int]:
    """By the classes of the modules, for a model whose step cannot be watched here."""
    from torch.nn.modules.conv import _ConvNd

    return sorted({len(each.kernel_size) for each in model.modules() if isinstance(each, _ConvNd)})


def _unconvolved(model: nn.Module) -> list[str]:
    """By the classes of the modules, for a model whose step cannot be watched here."""
    from torch.nn.modules.conv import _ConvNd

    within = [name for name, each in model.named_modules() if isinstance(each, _ConvNd)]
    named = (*model.named_parameters(), *model.named_buffers())
    return [name for name, weight in named if weight.dim() in (4, 5) and not any(_below(name, one) for one in within)]


def _below(name: str, module: str) -> bool:
    return not module or f"{name}.".startswith(f"{module}.")


def _reached(model: nn.Module, target: str, called: Sequence[str]) -> bool:
    """Whether the step runs `target`: it calls that module, or one which `target` is a part of and may be called by.

    A module that is at two places is known to `called` by its first name.
    """
    module = dict(model.named_modules(remove_duplicate=False))[target]  # a scripted model has no get_submodule
    first = next(name for name, each in model.named_modules() if each is module)
    return any(_below(first, each) for each in called)


def _dtypes(model: nn.Module, seen: Observed) -> list[str]:
    """What the watched step computed in; by the parameters, where it could not be watched.

    On the meta device attention in bf16 is watched in fp32, which does not happen where there is an operator for it:
    fp32 does not count there if no weight has it. Any other dtype that no weight has was cast to in the step.
    """
    stored = sorted({short(each.dtype) for each in model.parameters() if each.is_floating_point()})
    if seen.device is None:
        return stored
    found = seen.dtypes()
    if seen.device != "meta":
        return found
    return [each for each in found if each in stored or each != "fp32"] or found


def _unwatched(seen: Observed) -> str:
    """What may have been missed, where the step could not be watched."""
    if seen.device is not None:
        return ""
    return (
        f"The step could not be tried on a small batch beforehand ({seen.problem}), so dtypes, autocast and "
        "torch.compile that it sets itself may have been missed. Autocast that was missed is left out of every row."
    )


def _is_compiled(model: nn.Module) -> bool:
    """Whether a module is compiled, by its class; compiled functions are not visible without running the model."""
    return any(
        type(each).__name__ == "OptimizedModule" or each._compiled_call_impl is not None for each in model.modules()
    )


def _has_attention(model: nn.Module) -> bool:
    """Whether a module's class is attention; function calls are not visible without running the model."""
    from torch import nn

    return any(isinstance(m, nn.MultiheadAttention) or "Attention" in type(m).__name__ for m in model.modules())
