"""The training steps that are compared with the reference's, where something has to settle in the first steps.

A gradient scaler starts with a scale that is too large by design, and skips the updates whose gradients overflow until
it has found one that fits. Compared with a training that skips nothing, such steps look like a model that does not
train. So the steps are run again from the same start, with the scale found so far, until none of them is skipped.
"""

from __future__ import annotations

import copy
import random
from typing import TYPE_CHECKING, Any

from gpubench.worker import reference

if TYPE_CHECKING:
    import torch

    from gpubench.toggles.model_context import ModelContext
    from gpubench.worker.step import Stepper

MOST_STARTS = 48  # each at half the scale of the one before: from 65536 down to 2^-32, below what fp16 gradients need


class TrainingStart:
    """Weights, buffers, optimizer and random numbers before the first step, to go back to in place."""

    def __init__(self, context: ModelContext) -> None:
        import numpy as np
        import torch

        self.context = context
        self.tensors = {name: value.detach().cpu().clone() for name, value in _tensors(context)}
        self.optimizer: Any = copy.deepcopy(context.optimizer.state_dict()) if context.optimizer else None
        self.random = random.getstate(), np.random.get_state(), torch.get_rng_state()
        self.device_random = torch.cuda.get_rng_state(context.device) if context.device.type == "cuda" else None

    def restore(self) -> None:
        """Sets everything back."""
        import numpy as np
        import torch

        with torch.no_grad():
            for name, value in _tensors(self.context):
                value.copy_(self.tensors[name])
        if self.context.optimizer:
            self.context.optimizer.load_state_dict(copy.deepcopy(self.optimizer))
        python, numpy, cpu = self.random
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if self.device_random is not None:
            torch.cuda.set_rng_state(self.device_random, self.context.device)


def _tensors(context: ModelContext) -> list[tuple[str, torch.Tensor]]:
    return [*context.model.named_parameters(), *context.model.named_buffers()]


def settled_steps(
    stepper: Stepper, start: TrainingStart | None, before: dict[str, torch.Tensor], losses: list[float], count: int
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """As `reference.training_steps`, but from the first start on which no update is skipped.

    losses: of the steps since `start`. Where updates are skipped from every start, those of the last one count.
    """
    skipped = stepper.context.skipped
    if start is None or skipped is None:
        return reference.training_steps(stepper, before, losses, count)
    for _ in range(MOST_STARTS):
        while not (lost := skipped()) and len(losses) < count:
            stepper.run(len(losses) % len(stepper.context.batches))
            losses.append(float("nan") if stepper.loss is None else float(stepper.loss))
        if not lost:
            break
        start.restore()
        losses = []
    return reference.training_steps(stepper, before, losses, count)
