"""Whether a step's batch goes through the model at once or in parts, whose gradients add up before one update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpubench.report.model import Value
from gpubench.text import plural
from gpubench.toggles.printed import run_lines
from gpubench.toggles.step_parts import nothing
from gpubench.toggles.toggle import EvidenceResult, Scope, Stage, Toggle
from gpubench.workloads.batch import tensors

if TYPE_CHECKING:
    from gpubench.toggles.model_context import ModelContext

_PASSES = "accumulation.passes"  # note: items of each forward pass of the last step, and of each that went backward

_LINES = """from torch.utils._pytree import tree_map_only

def backward_in_parts(loss_of, batch, backward=torch.Tensor.backward):
    losses = []
    for part in range({count}):
        loss = loss_of(tree_map_only(torch.Tensor, lambda x: x.chunk({count})[part], batch)) / {count}
        backward(loss)
        losses.append(loss.detach())
    return sum(losses)
# in each training step, between optimizer.zero_grad() and optimizer.step(): loss = backward_in_parts(loss_of, batch)"""


def has_plain_loss(scope: Scope) -> str | None:
    """Applies to training with a plain loss, whose batch can be cut."""
    facts = scope.workload
    if facts.mode != "training":
        return "inference has no gradients"
    if facts.own_train_step:
        return "the workload's own train_step calls backward itself"
    if any(shape[:1] != [facts.batch_size] for shape in facts.input_shapes):
        return "not every input has the batch as its first dimension, so that it cannot be cut"
    return None


def _can_be_cut(scope: Scope, value: Value, configuration: Mapping[str, Value]) -> str | None:
    if value == 1:
        return None
    size, count = int(configuration.get("batch_size", scope.workload.batch_size)), int(value)
    if size % count:
        return f"needs a batch that {count} divides, so that all parts are of one size, and this one is {size}"
    if norm := next((name for name in scope.workload.modules if "BatchNorm" in name), None):
        return f"would compute something else: {norm} normalizes over what goes through the model at once"
    return None


def apply(context: ModelContext, value: Value) -> None:
    """Runs forward and backward pass for one part after the other; the losses are scaled to the mean of the batch."""
    if value == 1:
        return
    forward, backward = context.step.forward, context.step.backward
    in_parts = run_lines(_LINES.format(count=value))["backward_in_parts"]
    passes: dict[str, list[int]] = {"forward": [], "backward": []}
    context.notes[_PASSES] = passes
    context.parts = int(value)

    def loss_of(part: Any) -> Any:
        passes["forward"].append(tensors(part)[0].shape[0])
        return forward(part)

    def back(loss: Any) -> None:
        backward(loss)
        passes["backward"].append(passes["forward"][-1])

    def whole(batch: Any) -> Any:
        for each in passes.values():
            each.clear()
        return in_parts(loss_of, batch, back)

    context.step.forward, context.step.backward = whole, nothing


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether the last step ran so many forward and backward passes, each over as large a part of its batch."""
    passes = context.notes.get(_PASSES)
    if passes is None:
        return EvidenceResult(value == 1, "the batch goes through the model at once")
    forward, backward = passes["forward"], passes["backward"]
    words = f"{plural(len(forward), 'forward pass', 'forward passes')} and {len(backward)} backward in the step"
    words += f", over {' and '.join(map(str, sorted(set(forward)))) or 'no'} of {context.batch_size} items each"
    wanted = [context.batch_size // int(value)] * int(value)
    return EvidenceResult(forward == backward == wanted, words)


ACCUMULATION = Toggle(
    name="accumulation",
    summary="Parts of a step's batch whose gradients add up before the update; the loss has to be a mean over items.",
    values={
        1: "the whole batch at once",
        2: "two halves: the same gradient with half the activations in memory",
        4: "four quarters",
    },
    stage=Stage.OPTIMIZER,
    applies=has_plain_loss,
    check=_can_be_cut,
    apply=apply,
    evidence=evidence,
    usage=lambda value, _: _LINES.format(count=value),
    source="PyTorch documentation: Automatic Mixed Precision examples, Gradient accumulation",
)
