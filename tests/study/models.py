"""User workloads that misbehave in one way each, for the tests of the runner. Loaded as FILE.py:NAME."""

import dataclasses
import os
import time
from collections.abc import Callable

import torch
from torch import nn

from gpubench import Workload

Action = Callable[[torch.Tensor], torch.Tensor]


class Linear(nn.Module):
    """One small matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def inputs(batch: int, generator: torch.Generator) -> tuple[torch.Tensor]:
    return (torch.randn(batch, 32, generator=generator),)


def loss(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return model(batch[0]).square().mean()


def good() -> Workload:
    return Workload(name="good", item="row", batch_size=4, build=Linear, inputs=inputs, loss=loss)


_only = Linear()


def one_model() -> Workload:
    """Gives the same module whenever a model is asked for."""
    return Workload(name="one", item="row", batch_size=4, build=lambda: _only, inputs=inputs, loss=loss)


def _hang(out: torch.Tensor) -> torch.Tensor:
    time.sleep(3600)
    return out


def _take_all_memory(out: torch.Tensor) -> torch.Tensor:
    torch.ones(1 << 40)
    return out


def leaves() -> Workload:
    """Its process is gone after the first step."""

    def infer(model: nn.Module, batch: tuple[torch.Tensor, ...], options: object) -> torch.Tensor:
        os._exit(3)

    return Workload(name="leaves", item="row", batch_size=4, build=Linear, inputs=inputs, infer=infer)


def hangs_in_bf16() -> Workload:
    def infer(model: nn.Module, batch: tuple[torch.Tensor, ...], options: object) -> torch.Tensor:
        out = model(batch[0])
        return _hang(out) if out.dtype == torch.bfloat16 else out

    return Workload(name="hangs", item="row", batch_size=4, build=Linear, inputs=inputs, infer=infer)


def slower_in_fp32() -> Workload:
    """40 ms a step in fp32 and 20 ms in bf16: a technique that pays."""
    return sleeps_by_precision("faster", fp32_s=0.04, bf16_s=0.02)


def slower_in_bf16() -> Workload:
    """20 ms a step in fp32 and 40 ms in bf16: a technique that costs."""
    return sleeps_by_precision("slower", fp32_s=0.02, bf16_s=0.04)


def sleeps_by_precision(name: str, *, fp32_s: float, bf16_s: float) -> Workload:
    def infer(model, batch, options):  # type: ignore[no-untyped-def]
        out = model(batch[0])
        time.sleep(bf16_s if out.dtype == torch.bfloat16 else fp32_s)
        return out

    return Workload(name=name, item="row", batch_size=1, build=Linear, inputs=inputs, infer=infer)


_models: list[nn.Module] = []


class Alone(Linear):
    """Does not fit beside another of its kind in one process."""

    def __init__(self) -> None:
        super().__init__()
        _models.append(self)
        if len(_models) > 1:
            raise MemoryError("no room for a second one")


def one_at_a_time() -> Workload:
    return Workload(name="alone", item="row", batch_size=4, build=Alone, inputs=inputs)


class Dropped(nn.Module):
    """Draws random numbers while it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.dropout = nn.Linear(32, 32), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.layer(x))


def with_dropout() -> Workload:
    return Workload(name="dropout", item="row", batch_size=4, build=Dropped, inputs=inputs, loss=loss)


def draws_in_inference() -> Workload:
    def infer(model: nn.Module, batch: tuple[torch.Tensor, ...], options: object) -> torch.Tensor:
        return model(batch[0]) + torch.rand(1)

    return Workload(name="draws", item="row", batch_size=4, build=Linear, inputs=inputs, infer=infer)


class Broken(Linear):
    """Its forward breaks the graph."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        torch._dynamo.graph_break()
        return self.layer(y)


@dataclasses.dataclass
class Answer:
    values: torch.Tensor
    name: str = "answer"


def breaks_graph() -> Workload:
    """Answers with a dataclass, and breaks the graph."""

    def infer(model: nn.Module, batch: tuple[torch.Tensor, ...], options: object) -> Answer:
        return Answer(model(batch[0]))

    return Workload(name="breaks", item="row", batch_size=4, build=Broken, inputs=inputs, infer=infer)


def answers_in_words(model: nn.Module, batch: tuple[torch.Tensor, ...], options: object) -> dict[str, str]:
    model(batch[0])
    return {"answer": "a cat"}


def returns_nothing() -> Workload:
    return Workload(name="nothing", item="row", batch_size=4, build=Linear, inputs=inputs, infer=answers_in_words)


def greedy_in_fp32() -> Workload:
    """Its baseline takes more memory than any machine has; bf16 does not."""

    def infer(model: nn.Module, batch: tuple[torch.Tensor, ...], options: object) -> torch.Tensor:
        out = model(batch[0])
        return out if out.dtype == torch.bfloat16 else _take_all_memory(out)

    return Workload(name="greedy", item="row", batch_size=1, build=Linear, inputs=inputs, infer=infer)
