"""The parts that a step is composed of. A toggle's `apply` replaces or wraps any of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock

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
    compute = (workload.loss or workload.train_step) if training else workload.infer
    if compute is None:
        raise RuntimeError(f"workload {workload.name} has no {'loss' if training else 'infer'}")
    if training:
        compute = with_options(compute, context.options)

    def zero_grad() -> None:
        if not context.optimizers:
            raise RuntimeError(f"workload {workload.name} cannot be trained without an optimizer")
        for optimizer in context.optimizers.values():
            optimizer.zero_grad(set_to_none=True)

    def update() -> None:
        update_parameters(context, lambda optimizer: optimizer.step())

    def whole_step(batch: Any) -> Any:
        with backward_outside_autocast(context.device.type):
            loss = compute(context.model, batch, context.optimizers)
        for scheduler in context.schedulers:
            scheduler.step()
        return loss

    def transfer(batch: Any) -> Any:
        return batch if context.inputs_resident else on_device(batch, context.device)

    def forward(batch: Any) -> Any:
        options = () if training else (context.options,)
        return compute(context.model, batch, *options)

    own = training and workload.train_step is not None
    return StepParts(
        fetch=lambda index: context.batches[index],
        transfer=transfer,
        zero_grad=nothing if own else zero_grad,
        forward=whole_step if own else forward,
        backward=nothing if own else lambda loss: loss.backward(),
        update=nothing if own else update,
        collect=lambda result: result.detach() if training else result,
        grad_mode=torch.enable_grad if training else torch.no_grad,  # whatever the workload's code has switched
    )


def update_parameters(
    context: ModelContext,
    step: Callable[[torch.optim.Optimizer], Any],
    unscale: Callable[[torch.optim.Optimizer], Any] = lambda _: None,
) -> None:
    """One `step` of each optimizer, whose gradients are clipped before where `context.clips` asks for it."""
    import torch

    for name, optimizer in context.optimizers.items():
        if name in context.clips:
            unscale(optimizer)
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, context.clips[name], **context.clip_arguments)
        step(optimizer)
    for scheduler in context.schedulers:
        scheduler.step()


def nothing(*_: Any) -> None:
    """A part that the workload's own training step does itself."""


@contextmanager
def backward_outside_autocast(kind: str) -> Iterator[None]:
    """Inside the block `backward` leaves an autocast region that is around it, as torch's documentation asks for."""
    import torch

    backward = torch.autograd.backward

    def outside(*arguments: Any, **named: Any) -> None:
        with torch.autocast(kind, enabled=False):
            backward(*arguments, **named)

    with mock.patch.object(torch.autograd, "backward", outside):
        yield


def on_device(batch: Any, device: torch.device) -> Any:
    """`batch` on `device`."""
    return map_tensors(lambda tensor: tensor.to(device), batch)
