"""Weights in the host's memory, on the GPU only while the stage or block that has them runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gpubench.report.model import Value
from gpubench.text import plural
from gpubench.toggles.compilation.compile_call import CUDA_GRAPH_MODES
from gpubench.toggles.evidence import is_blind, recorded
from gpubench.toggles.printed import each_submodule, run_lines
from gpubench.toggles.toggle import Conflict, EvidenceResult, Requirement, Scope, Stage, Toggle
from gpubench.workloads.blocks import blocks

if TYPE_CHECKING:
    from torch import nn

    from gpubench.toggles.model_context import ModelContext

_COPY = "HtoD"

# Weights do not change in inference, so that nothing is copied back: the host's tensor takes its place again.
_LINES = """# in place of model.to(device): the weights of these parts stay in the host's memory
on_host = {{}}  # weight -> its tensor there, while another one is on the device

@torch.compiler.disable
def put_back(*_):
    for weight, tensor in on_host.items():
        weight.data = tensor
    on_host.clear()

@torch.compiler.disable
def bring(module, *_):
    if all(weight in on_host or weight.is_cuda for weight in module.parameters()):
        return
    put_back()
    for weight in module.parameters():
        if not weight.is_cuda:
            on_host[weight] = weight.data.pin_memory()  # pinned, the copy does not wait for the host
            weight.data = on_host[weight].to(device, non_blocking=True)

offloaded = {parts}
inside = {{part for module in offloaded for part in module.modules()}}
for part in model.modules():
    if part not in inside:
        part._apply(lambda tensor: tensor.to(device), recurse=False)
    else:
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, buffer.to(device))
for module in offloaded:
    module.register_forward_pre_hook(bring)
{after}"""
_AFTER: dict[Value, str] = {
    "stages": "# at the end of each step: put_back()",
    "layers": "    module.register_forward_hook(put_back)",
}


def has_parts_on_a_gpu(scope: Scope) -> str | None:
    """Applies on a GPU, to models with stages or repeated blocks."""
    if scope.device.kind != "cuda":
        return f"all weights are in the host's memory on {scope.device.name}"
    if scope.workload.stages or scope.workload.blocks:
        return None
    return f"workload {scope.workload.name} has neither stages nor repeated blocks"


def has_stages(scope: Scope) -> str | None:
    """The workload names stages."""
    return None if scope.workload.stages else "needs a workload that names its stages"


def has_blocks(scope: Scope) -> str | None:
    """The model has repeated blocks."""
    return None if scope.workload.blocks else "needs a model with repeated blocks"


def lines(value: Value, names: Sequence[str]) -> str:
    """The lines that put the model on the device but for those submodules."""
    return _LINES.format(parts=each_submodule(names), after=_AFTER[value])


def _names(context: ModelContext, value: Value) -> list[str]:
    return list(context.workload.stages) if value == "stages" else list(blocks(context.model))


def apply(context: ModelContext, value: Value) -> None:
    """Replaces the move of the whole model to the device by that of what is not offloaded."""
    if value == "off":
        return
    forward, known = context.step.forward, dict[str, Any]()

    def place() -> None:
        known.update(run_lines(lines(value, _names(context, value)), model=context.model, device=context.device))

    def with_end(batch: Any) -> Any:
        output = forward(batch)
        known["put_back"]()
        return output

    context.place = place
    if value == "stages":
        context.step.forward = with_end


def _weights(modules: Sequence[nn.Module]) -> list[nn.Parameter]:
    return list(dict.fromkeys(weight for module in modules for weight in module.parameters()))


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Where the weights are between steps, and how many copies to the device the profiled step made."""
    modules = dict(context.model.named_modules(remove_duplicate=False))
    chosen = [modules[name] for name in _names(context, value)] if value != "off" else [context.model]
    weights = _weights(chosen)
    there = sum(weight.device.type == "cpu" for weight in weights)
    words = f"{there} of {plural(len(weights), 'weight')} are in the host's memory between steps"
    trace = recorded(context)
    if isinstance(trace, EvidenceResult):
        return trace
    copies = sum(_COPY in copy for copy in trace.copies)
    words += f"; the step made {plural(copies, 'copy', 'copies')} to the device"
    if value == "off":
        return EvidenceResult(True, words)
    # Weights that other parts share stay on the device.
    if not there:
        return EvidenceResult(False, words)
    if is_blind(context, trace):
        return EvidenceResult(None, f"{words}, as far as the profiler could tell")
    return EvidenceResult(copies > 0 and copies >= min(there, len(chosen)), words)


_NO_GRAPHS = "a CUDA graph replays with the weights where they were when it was captured"

OFFLOAD = Toggle(
    name="offload",
    summary="Weights are kept in the host's memory and copied to the GPU when they are needed.",
    values={
        "off": "all weights are on the GPU",
        "stages": "those of one stage at a time are on the GPU, copied there when it is first called",
        "layers": "those of one repeated block at a time; what is outside the blocks stays there",
    },
    stage=Stage.MODEL,
    applies=has_parts_on_a_gpu,
    requires={
        "stages": Requirement(
            device_kinds=("cuda",),
            modes=("inference",),
            check=has_stages,
            why="in training a backward pass needs the weights once more",
        ),
        "layers": Requirement(
            device_kinds=("cuda",),
            modes=("inference",),
            check=has_blocks,
            why="in training a backward pass needs the weights once more",
        ),
    },
    conflicts=tuple(
        Conflict(value=value, other="compile", other_values=CUDA_GRAPH_MODES, reason=_NO_GRAPHS)
        for value in ("stages", "layers")
    ),
    apply=apply,
    evidence=evidence,
    usage=lambda value, scope: _usage(value, scope),
    claims=("vae-guide", "gpu-guide"),
    source="Diffusers documentation: Reduce memory usage, model and group offloading; PyTorch tutorial: A guide on "
    "good usage of non_blocking and pin_memory()",
)


def _usage(value: Value, scope: Scope | None) -> str:
    if value == "off":
        return "# offload: off, so the whole model is on the device"
    if scope is None:
        return lines(value, ["encoder", "decoder"] if value == "stages" else ["blocks.0", "blocks.1"])
    facts = scope.workload
    return lines(value, facts.stages if value == "stages" else [each.name for each in facts.block_targets])
