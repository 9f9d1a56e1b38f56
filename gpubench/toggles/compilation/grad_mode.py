"""What autograd records in an inference step: nothing, not even versions of tensors, or the whole graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpubench.report.model import Value
from gpubench.toggles import evidence as read
from gpubench.toggles.eager_pass import run_eagerly
from gpubench.toggles.printed import run_lines
from gpubench.toggles.toggle import EvidenceResult, Scope, Stage, Toggle
from gpubench.workloads.batch import tensors

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from gpubench.toggles.model_context import ModelContext

_OUTPUT = "grad_mode.output"  # note: what the last step returned
_FUNCTIONS = {"no_grad": "no_grad", "inference_mode": "inference_mode", "grad": "enable_grad"}


def is_inference(scope: Scope) -> str | None:
    """Applies to inference."""
    return None if scope.workload.mode == "inference" else "training needs gradients"


def _lines(value: Value) -> str:
    return f"grad_mode = torch.{_FUNCTIONS[str(value)]}  # in each step: with grad_mode(): the forward pass"


def apply(context: ModelContext, value: Value) -> None:
    """Enters that mode around the forward pass, and keeps what the step returns for the evidence."""
    context.step.grad_mode = run_lines(_lines(value))["grad_mode"]
    collect = context.step.collect

    def kept(result: Any) -> Any:
        context.notes[_OUTPUT] = collect(result)  # the stepper keeps it as long, so that no memory is added
        return context.notes[_OUTPUT]

    context.step.collect = kept


def _mode_of(found: Iterable[torch.Tensor]) -> str | None:
    """The mode that tensors tell they were computed in; None where none of them can tell."""
    found = list(found)
    if any(tensor.is_inference() for tensor in found):
        return "inference_mode"
    if any(tensor.requires_grad for tensor in found):
        return "grad"
    return "no_grad" if any(tensor.is_floating_point() or tensor.is_complex() for tensor in found) else None


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """What the output of the profiled step tells: an inference tensor, one with a gradient function, or neither."""
    trace = read.recorded(context)
    if isinstance(trace, EvidenceResult):
        return trace
    mode, where = _mode_of(tensors(context.notes.get(_OUTPUT))), "the outputs of the step"
    hidden = mode is None or value == "grad" or context.compiled or read.replays_graph(trace)
    if value not in (mode, "no_grad") and hidden:
        # An output of whole numbers has no gradient, a detached one lost it, and graphs return buffers of their own.
        mode, where = _mode_inside(context) or mode, "the outputs of the modules, in one more pass,"
    words = {
        "inference_mode": f"{where} are inference tensors",
        "grad": f"{where} require gradients",
        "no_grad": f"{where} are neither inference tensors nor require gradients",
    }.get(str(mode), "no tensor of the step tells in which mode it was computed")
    if value == "no_grad":  # nothing was changed: what the workload's own code switches is a part of it
        return EvidenceResult(True, words)
    return EvidenceResult(None if mode is None else mode == value, words)


def _mode_inside(context: ModelContext) -> str | None:
    """The mode that the tensors between the modules tell, in a pass of its own."""
    from torch.nn.modules.module import register_module_forward_hook

    modes: set[str | None] = set()

    def look(module: Any, inputs: Any, output: Any) -> None:
        modes.add(_mode_of(tensors(output)))

    hook = register_module_forward_hook(look)
    try:
        run_eagerly(context)
    finally:
        hook.remove()
    return next((mode for mode in ("inference_mode", "grad", "no_grad") if mode in modes), None)


GRAD_MODE = Toggle(
    name="grad_mode",
    summary="What autograd records in an inference step.",
    values={
        "no_grad": "no graph for a backward pass (torch.no_grad)",
        "inference_mode": "no graph, and neither version counters nor views are tracked (torch.inference_mode)",
        "grad": "the graph for a backward pass that never comes, with the memory of all activations",
    },
    stage=Stage.BACKEND,
    applies=is_inference,
    ranks_anew_compiled=True,  # what it saves is the host's work for each operator
    apply=apply,
    evidence=evidence,
    usage=lambda value, _: _lines(value),
    claims=("bf16-guide",),
    source="PyTorch documentation: Autograd mechanics, Grad Modes",
)
