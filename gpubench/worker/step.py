"""The timed step: one inference call or one training step, composed of the context's `StepParts`."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from gpubench.toggles.model_context import ModelContext


class Stepper:
    """Runs the context's step on its batches in turn, and keeps the last output and loss."""

    def __init__(self, context: ModelContext) -> None:
        self.context = context
        self.output: Any = None  # of the last inference step
        self.loss: torch.Tensor | None = None  # of the last training step
        self.last_batch = -1  # index of the batch that made them
        self.steps = 0  # so far, of every purpose
        self._order = itertools.cycle(range(len(context.batches)))

    def step(self) -> None:
        """One step on the next batch."""
        self.run(next(self._order))

    def run(self, index: int) -> None:
        """One step on batch `index`."""
        self.last_batch = index
        self.steps += 1
        parts, training = self.context.step, self.context.mode == "training"
        batch = parts.transfer(parts.fetch(index))
        if training:
            parts.zero_grad()
        with parts.grad_mode():
            result = parts.forward(batch)
        if training:
            parts.backward(result)
            parts.update()
            self.loss = parts.collect(result)
        else:
            self.output = parts.collect(result)
