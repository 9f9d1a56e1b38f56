"""The timed step: one inference call or one training step, exactly as a user would write it."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from gpubench.toggles.model_context import ModelContext


class Stepper:
    """Calls the context's step on its batches in turn, and keeps the last output and loss."""

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
        with contextlib.ExitStack() as stack:
            for enter in self.context.contexts:
                stack.enter_context(enter())
            if self.context.mode == "inference":
                self._infer(index)
            else:
                self._train(index)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        import torch

        dtype = self.context.autocast_dtype
        return torch.autocast(self.context.device.type, dtype) if dtype else contextlib.nullcontext()

    def _infer(self, index: int) -> None:
        import torch

        context = self.context
        infer = context.workload.infer
        if infer is None:
            raise RuntimeError(f"workload {context.workload.name} has no infer")
        with torch.no_grad(), self._autocast():
            self.output = infer(context.model, context.batches[index], context.options)

    def _train(self, index: int) -> None:
        context = self.context
        optimizer, loss_function, scaler = context.optimizer, context.workload.loss, context.scaler
        if optimizer is None or loss_function is None:
            raise RuntimeError(f"workload {context.workload.name} cannot be trained without loss and optimizer")
        optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            loss = loss_function(context.model, context.batches[index])
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        self.loss = loss.detach()
