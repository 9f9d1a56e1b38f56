"""The training steps that are compared with the reference's, where something has to settle in the first steps.

A gradient scaler starts with a scale that is too large by design, and skips the updates whose gradients overflow until
it has found one that fits. Compared with a training that skips nothing, such steps look like a model that does not
train. So the steps are run again from the same start, with the scale found so far, until none of them is skipped.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from gpubench.worker import reference
from gpubench.worker.seeding import seed_step

if TYPE_CHECKING:
    import torch

    from gpubench.toggles.model_context import ModelContext
    from gpubench.worker.step import Stepper

MOST_STARTS = 48  # each at half the scale of the one before: from 65536 down to 2^-32, below what fp16 gradients need


class TrainingStart:
    """Weights, buffers and optimizer before the first step, to go back to in place."""

    def __init__(self, context: ModelContext) -> None:
        self.context = context
        self.tensors = {name: value.detach().cpu().clone() for name, value in _tensors(context)}
        self.states: list[Any] = [copy.deepcopy(each.state_dict()) for each in _stateful(context)]

    def restore(self) -> None:
        """Sets everything back."""
        import torch

        with torch.no_grad():
            for name, value in _tensors(self.context):
                value.copy_(self.tensors[name])
        for each, state in zip(_stateful(self.context), self.states, strict=True):
            each.load_state_dict(copy.deepcopy(state))


def _stateful(context: ModelContext) -> list[Any]:
    return [*context.optimizers.values(), *context.schedulers, *context.loss_schedulers]


def _tensors(context: ModelContext) -> list[tuple[str, torch.Tensor]]:
    return [*context.model.named_parameters(), *context.model.named_buffers()]


def settled_steps(
    stepper: Stepper,
    start: TrainingStart | None,
    before: dict[str, torch.Tensor],
    losses: list[float],
    count: int,
    seed: int,
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """As `reference.training_steps`, but from the first start on which no update is skipped.

    losses: of the steps since `start`. Where updates are skipped from every start, those of the last one count.
    """
    skipped = stepper.context.skipped
    if start is None or skipped is None:
        return reference.training_steps(stepper, before, losses, count, seed)
    for _ in range(MOST_STARTS):
        while not (lost := skipped()) and len(losses) < count:
            seed_step(seed, len(losses))
            stepper.run(len(losses) % len(stepper.context.batches))
            losses.append(float("nan") if stepper.loss is None else float(stepper.loss))
        if not lost:
            break
        start.restore()
        losses = []
    return reference.training_steps(stepper, before, losses, count, seed)
