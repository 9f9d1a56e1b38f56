"""What the zoo's models share: inputs, losses, and wrappers that make a library's model one step of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from gpubench.workloads.workload import Batch, Options, Workload, call_model

Inputs = Callable[[int, torch.Generator], Batch]
BATCH = 2


def normals(*shapes: tuple[int, ...]) -> Inputs:
    """Inputs of these shapes, each after the batch."""
    return lambda count, generator: tuple(torch.randn(count, *shape, generator=generator) for shape in shapes)


def pixels(*shape: int) -> Inputs:
    """Images between 0 and 1."""
    return lambda count, generator: (torch.rand(count, *shape, generator=generator),)


def tokens(vocabulary: int, *lengths: int) -> Inputs:
    """Sequences of token numbers, one for each length."""
    return lambda count, generator: tuple(
        torch.randint(1, vocabulary, (count, length), generator=generator) for length in lengths
    )


def both(*parts: Inputs) -> Inputs:
    """The inputs of several makers, one after the other."""
    return lambda count, generator: tuple(tensor for part in parts for tensor in part(count, generator))


def scalars(below: int) -> Inputs:
    """One whole number for each element of the batch, such as a time step or a class."""
    return lambda count, generator: (torch.randint(0, below, (count,), generator=generator),)


def mean_square(outputs: Any) -> torch.Tensor:
    """A loss that needs no target: how far the first tensor of the outputs is from a fixed wave."""
    tensor = first_tensor(outputs).float()
    wave = torch.sin(torch.arange(tensor.numel(), dtype=torch.float32)).reshape(tensor.shape)
    return F.mse_loss(tensor, wave)


def first_tensor(outputs: Any) -> torch.Tensor:
    """The first floating-point tensor of a nest of outputs."""
    if isinstance(outputs, torch.Tensor):
        return outputs
    values = outputs.values() if hasattr(outputs, "values") else outputs
    return first_tensor(next(iter(values)))


def zoo_model(
    name: str,
    build: Callable[[], nn.Module],
    inputs: Inputs,
    *,
    infer: Callable[[nn.Module, Batch, Options], Any] = call_model,
    trains: bool = False,
    loss: Callable[[nn.Module, Batch], torch.Tensor] | None = None,
    compile_targets: tuple[str, ...] = ("",),
    compare: str = "values",
) -> Workload:
    """A workload of the zoo: inference always; training with `loss`, or with a loss over what `infer` returns.

    compare: "set" for rows that are selected or sorted, such as detections.
    """
    if trains and loss is None:

        def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
            return mean_square(infer(model, batch, {}))

    return Workload(
        name=name,
        item="sample",
        batch_size=BATCH,
        build=build,
        inputs=inputs,
        infer=infer,
        loss=loss,
        compile_targets=compile_targets,
        compare=compare,
    )


class Keywords(nn.Module):
    """Calls a model with its inputs as the keyword arguments `names`, and with `fixed` ones."""

    def __init__(self, model: nn.Module, *names: str, **fixed: Any) -> None:
        super().__init__()
        self.model, self.names, self.fixed = model, names, fixed

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.model(**dict(zip(self.names, inputs, strict=True)), **self.fixed)
