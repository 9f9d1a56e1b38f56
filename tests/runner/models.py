"""User workloads that misbehave in one way each, for the tests of the runner. Loaded as FILE.py:NAME."""

import dataclasses
import os
import signal
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


def _die(signal_number: int) -> Action:
    def action(out: torch.Tensor) -> torch.Tensor:
        os.kill(os.getpid(), signal_number)
        return out

    return action


def _raise(out: torch.Tensor) -> torch.Tensor:
    print("about to fail")
    raise ValueError("the [red]user's[/red] own mistake")


def _kill_server(out: torch.Tensor) -> torch.Tensor:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)
    return out


def _hang(out: torch.Tensor) -> torch.Tensor:
    time.sleep(3600)
    return out


def _take_all_memory(out: torch.Tensor) -> torch.Tensor:
    torch.ones(1 << 40)
    return out


def _leave(out: torch.Tensor) -> torch.Tensor:
    os._exit(3)


_seen: list[torch.Tensor] = []


def _stale(out: torch.Tensor) -> torch.Tensor:
    """Right for the first step and once for each input, then the first output for ever."""
    _seen.append(out)
    return out if len(_seen) <= 3 else _seen[0] + 1


# What the step does, by the number of threads that it runs with: numbers that are nobody's default.
FAULTS: dict[int, Action] = {
    41: _die(signal.SIGSEGV),
    42: _die(signal.SIGKILL),
    43: _leave,
    44: _kill_server,
    45: _raise,
    46: _take_all_memory,
    47: lambda out: out * float("nan"),
    48: torch.zeros_like,
    49: lambda out: out * 2,
    50: _stale,
    51: lambda out: out[:2],
    52: _hang,
    53: lambda out: out,  # the last one is good: nothing before it has left a trace
}


def faults() -> Workload:
    """One row of a matrix product, spoiled in the way that the number of threads says."""

    def infer(model: nn.Module, batch: tuple[torch.Tensor, ...], options: object) -> torch.Tensor:
        out = model(batch[0])
        return FAULTS.get(torch.get_num_threads(), lambda out: out)(out)

    return Workload(name="faults", item="row", batch_size=4, build=Linear, inputs=inputs, infer=infer)


def hangs_in_bf16() -> Workload:
    def infer(model: nn.Module, batch: tuple[torch.Tensor, ...], options: object) -> torch.Tensor:
        out = model(batch[0])
        return _hang(out) if out.dtype == torch.bfloat16 else out

    return Workload(name="hangs", item="row", batch_size=4, build=Linear, inputs=inputs, infer=infer)


class Hungry(nn.Module):
    """Takes 256 MiB for each row of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        room = x.repeat_interleave(2 * 2**20, dim=1)[:, : 64 * 2**20]
        return room[:, ::100000] * self.weight


def hungry() -> Workload:
    return Workload(name="hungry", item="row", batch_size=1, build=Hungry, inputs=inputs)


def sleeps() -> Workload:
    """20 ms a step: 50 steps per second."""

    def infer(model, batch, options):  # type: ignore[no-untyped-def]
        time.sleep(0.02)
        return model(batch[0])

    return Workload(name="sleeps", item="row", batch_size=1, build=Linear, inputs=inputs, infer=infer)


def slower_in_fp32() -> Workload:
    """40 ms a step in fp32 and 20 ms in bf16: a technique that pays."""

    def infer(model, batch, options):  # type: ignore[no-untyped-def]
        out = model(batch[0])
        time.sleep(0.02 if out.dtype == torch.bfloat16 else 0.04)
        return out

    return Workload(name="faster", item="row", batch_size=1, build=Linear, inputs=inputs, infer=infer)


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


def slower_in_bf16() -> Workload:
    """20 ms a step in fp32 and 40 ms in bf16: a technique that costs."""

    def infer(model, batch, options):  # type: ignore[no-untyped-def]
        out = model(batch[0])
        time.sleep(0.04 if out.dtype == torch.bfloat16 else 0.02)
        return out

    return Workload(name="slower", item="row", batch_size=1, build=Linear, inputs=inputs, infer=infer)


def chatty_memory() -> Workload:
    """Builds with 300 MB that are freed before the first step: no peak of the steps may show them."""

    def build() -> nn.Module:
        room = torch.ones(75_000_000)
        del room
        return Linear()

    return Workload(name="chatty", item="row", batch_size=1, build=build, inputs=inputs)


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


def returns_a_float(model: nn.Module, batch: tuple[torch.Tensor, ...], options: object) -> float:
    model(batch[0])
    return 3.0


def returns_nothing() -> Workload:
    return Workload(name="nothing", item="row", batch_size=4, build=Linear, inputs=inputs, infer=returns_a_float)


def greedy_in_fp32() -> Workload:
    """Its baseline takes more memory than any machine has; bf16 does not."""

    def infer(model: nn.Module, batch: tuple[torch.Tensor, ...], options: object) -> torch.Tensor:
        out = model(batch[0])
        return out if out.dtype == torch.bfloat16 else _take_all_memory(out)

    return Workload(name="greedy", item="row", batch_size=1, build=Linear, inputs=inputs, infer=infer)
