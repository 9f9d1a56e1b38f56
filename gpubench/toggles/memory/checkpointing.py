"""Activation checkpointing: blocks keep their input alone, and compute the rest again in the backward pass."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpubench.measure.trace import Trace
from gpubench.report.model import Value
from gpubench.text import plural
from gpubench.toggles import dynamo_records as records
from gpubench.toggles import evidence as read
from gpubench.toggles.printed import each_submodule, run_lines
from gpubench.toggles.toggle import EvidenceResult, Requirement, Scope, Stage, Toggle
from gpubench.workloads.blocks import blocks

if TYPE_CHECKING:
    from torch import nn

    from gpubench.toggles.model_context import ModelContext

# What the profiler calls a node of the backward pass: autograd's own, a compiled one, one of a user's Function.
_NODE = re.compile(r"\w+Backward\d*|torch::autograd::CppNode.*")
# Operators that only a forward pass calls: autograd's own formulas and compiled backward passes have others.
_FORWARD = re.compile(
    r"aten::(linear|conv\w*\dd|_?convolution|layer_norm|group_norm|rms_norm|scaled_dot_product_attention"
    r"|_scaled_dot_product_(?!\w*backward)\w+)"
)
_STATEFUL = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm", "_SpectralNorm")

_KEEP = """aten = torch.ops.aten
kept = {
    aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default, aten.convolution.default,
    aten._scaled_dot_product_flash_attention.default, aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default, aten._scaled_dot_product_cudnn_attention.default,
}

def policy(context, operator, *args, **kwargs):
    return CheckpointPolicy.MUST_SAVE if operator in kept else CheckpointPolicy.PREFER_RECOMPUTE

keep = functools.partial(create_selective_checkpoint_contexts, policy)
"""


def keeps_activations(scope: Scope) -> str | None:
    """Applies to the training of models with repeated blocks."""
    if scope.workload.mode != "training":
        return "inference keeps no activations"
    return None if scope.workload.blocks else f"workload {scope.workload.name} has no repeated blocks"


def counts_no_batches(scope: Scope) -> str | None:
    """No layer of the model changes its own state in a forward pass, as batch normalization does."""
    found = [name for name in _STATEFUL if name in scope.workload.modules]
    return f"would change twice in each step what {found[0]} keeps from step to step" if found else None


def lines(value: Value, names: Sequence[str]) -> str:
    """The lines that wrap the forward of every block of those dotted names, or of every second one."""
    selective = value == "selective"
    more = ", CheckpointPolicy, create_selective_checkpoint_contexts" if selective else ""
    head = (
        f"import functools\nfrom torch.utils.checkpoint import checkpoint{more}\n{_KEEP}"
        if selective
        else ("from torch.utils.checkpoint import checkpoint\n")
    )
    context = ", context_fn=keep" if selective else ""
    step = "[::2]" if value == "every-second-block" else ""
    return f"""{head}
for block in {each_submodule(names)}{step}:
    if any(weight.requires_grad for weight in block.parameters()):
        block.forward = lambda *args, forward=block.forward, **kwargs: checkpoint(
            forward, *args, use_reentrant=False{context}, **kwargs
        )"""


def apply(context: ModelContext, value: Value) -> None:
    """Wraps the forward of the blocks that are trained."""
    if value == "off":
        return
    run_lines(lines(value, list(blocks(context.model))), model=context.model)


def _trained(context: ModelContext, value: Value) -> list[nn.Module]:
    found = list(blocks(context.model).values())[:: 2 if value == "every-second-block" else 1]
    return [block for block in found if any(weight.requires_grad for weight in block.parameters())]


def _ran_again(trace: Trace) -> int:
    """In how many nodes of the backward pass forward operators ran: one for each region that was computed again."""
    nodes = read.outermost(trace, _NODE)
    return sum(any(_FORWARD.fullmatch(operator.name) for operator in called) for _, called in nodes)


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether forward operators of the blocks ran again in the backward pass of the profiled step."""
    trace = read.recorded(context)
    if isinstance(trace, EvidenceResult):
        return trace
    again = _ran_again(trace)
    words = f"forward operators ran again in {plural(again, 'node')} of the backward pass"
    if value == "off":
        return EvidenceResult(True, f"{words}: the model's own code does that" if again else words)
    asked = len(_trained(context, value))
    words += f", {plural(asked, 'block')} asked for it"
    if value == "selective":
        return _selective(context, trace, again, words)
    if again >= read.MAJORITY * asked:
        return EvidenceResult(bool(asked), words)
    return _compiled(context, trace, again, words)


def _selective(context: ModelContext, trace: Trace, again: int, words: str) -> EvidenceResult:
    kept = len(read.kept_results(trace))
    words += f"; {plural(kept, 'result')} of matrix products, convolutions and attentions had been kept"
    # In compiled code nothing is called again that was kept.
    return EvidenceResult(True, words) if again and kept else _compiled(context, trace, 0, words)


def _compiled(context: ModelContext, trace: Trace, again: int, words: str) -> EvidenceResult:
    """What can be said where dynamo has seen the blocks, or a CUDA graph hides what ran."""
    if read.replays_graph(trace):
        return EvidenceResult(None, f"{words}; a CUDA graph hides what ran")
    regions = sum(graph.checkpoints for graph in records.graphs_of(context))
    if regions:
        words += f"; dynamo has told the compiler of {plural(regions, 'such region')}"
    if again:
        return EvidenceResult(True if regions else None, f"{words}; other blocks may not have run")
    if regions:
        return EvidenceResult(None, f"{words}, which decides what it computes again: its kernels do not tell")
    return EvidenceResult(False, words)


_STATELESS = Requirement(check=counts_no_batches)

CHECKPOINTING = Toggle(
    name="checkpointing",
    summary="Blocks compute their activations again in the backward pass instead of keeping them.",
    values={
        "off": "all activations that the backward pass needs are kept",
        "every-block": "each block keeps its input alone",
        "every-second-block": "every second block keeps its input alone",
        "selective": "each block keeps its input and the results of matrix products, convolutions and attention",
    },
    stage=Stage.MODEL,
    applies=keeps_activations,
    requires={"every-block": _STATELESS, "every-second-block": _STATELESS, "selective": _STATELESS},
    apply=apply,
    evidence=evidence,
    usage=lambda value, scope: (
        "# checkpointing: off, so the blocks stay as they are"
        if value == "off"
        else lines(value, [each.name for each in scope.workload.block_targets] if scope else ["blocks.0", "blocks.1"])
    ),
    claims=("cytodl", "mmrec-cpu"),
    source="PyTorch documentation: torch.utils.checkpoint; Chen et al., Training Deep Nets with Sublinear Memory Cost "
    "(2016)",
)
