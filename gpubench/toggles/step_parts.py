"""The parts that a step is composed of. A toggle's `apply` replaces or wraps any of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpubench.workloads.batch import map_tensors
from gpubench.workloads.building import with_options

if TYPE_CHECKING:
    import torch

    from gpubench.toggles.model_context import ModelContext

Enter = Callable[[], AbstractContextManager[Any]]


@dataclass
class StepParts:
    """What a step calls, in this order; all of it is timed (`Protocol.timed_parts`).

    Example, in a toggle's `apply`:

        context.step.grad_mode = torch.inference_mode
        context.step.forward = within(lambda: torch.autocast("cuda"), context.step.forward)
    """

    fetch: Callable[[int], Any]  # index of a batch -> that batch
    transfer: Callable[[Any], Any]  # batch -> the same on the device
    zero_grad: Callable[[], None]  # training
    forward: Callable[[Any], Any]  # batch -> output; in training the scalar loss
    backward: Callable[[torch.Tensor], None]  # training
    update: Callable[[], None]  # training
    collect: Callable[[Any], Any]  # output or loss -> what the step leaves to be compared
    grad_mode: Enter  # entered around `forward`


def within(enter: Enter, part: Callable[..., Any]) -> Callable[..., Any]:
    """`part`, run inside what `enter` makes, anew for each call."""

    def call(*arguments: Any) -> Any:
        with enter():
            return part(*arguments)

    return call


def plain_step(context: ModelContext) -> StepParts:
    """The step as a user would write it first: fp32, and without gradients in inference."""
    import torch

    training, workload = context.mode == "training", context.workload
    given = workload.loss if training else workload.infer
    if given is None:
        raise RuntimeError(f"workload {workload.name} has no {'loss' if training else 'infer'}")
    compute = with_options(given, context.options) if training else given

    def optimizer() -> torch.optim.Optimizer:
        if context.optimizer is None:
            raise RuntimeError(f"workload {workload.name} cannot be trained without an optimizer")
        return context.optimizer

    def transfer(batch: Any) -> Any:
        return batch if context.inputs_resident else on_device(batch, context.device)

    def forward(batch: Any) -> Any:
        options = () if training else (context.options,)
        return compute(context.model, batch, *options)

    return StepParts(
        fetch=lambda index: context.batches[index],
        transfer=transfer,
        zero_grad=lambda: optimizer().zero_grad(set_to_none=True),
        forward=forward,
        backward=lambda loss: loss.backward(),
        update=lambda: optimizer().step(),
        collect=lambda result: result.detach() if training else result,
        grad_mode=torch.enable_grad if training else torch.no_grad,  # whatever the workload's code has switched
    )


def on_device(batch: Any, device: torch.device) -> Any:
    """`batch` on `device`."""
    return map_tensors(lambda tensor: tensor.to(device), batch)
