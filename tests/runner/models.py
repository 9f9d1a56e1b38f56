"""User workloads that misbehave in one way each, for the tests of the runner. Loaded as FILE.py:NAME."""

import os
import signal
import time

import torch
from torch import nn

from gpubench import Workload


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


def _with_step(name: str, action) -> Workload:  # type: ignore[no-untyped-def]
    """A workload whose step does `action(model, x)` beside the matrix product, once it is autocast to bf16."""

    def infer(model, batch, options):  # type: ignore[no-untyped-def]
        out = model(batch[0])
        return action(model, out) if out.dtype == torch.bfloat16 else out

    return Workload(name=name, item="row", batch_size=4, build=Linear, inputs=inputs, infer=infer)


def _die(signal_number: int):  # type: ignore[no-untyped-def]
    def action(model: nn.Module, out: torch.Tensor) -> torch.Tensor:
        os.kill(os.getpid(), signal_number)
        return out

    return action


def segfault() -> Workload:
    return _with_step("segfault", _die(signal.SIGSEGV))


def killed() -> Workload:
    return _with_step("killed", _die(signal.SIGKILL))


def leaves() -> Workload:
    return _with_step("leaves", lambda model, out: os._exit(3))


def kills_server() -> Workload:
    def action(model: nn.Module, out: torch.Tensor) -> torch.Tensor:
        os.kill(os.getppid(), signal.SIGKILL)
        return out

    return _with_step("kills-server", action)


def hang() -> Workload:
    return _with_step("hang", lambda model, out: time.sleep(3600))


def raises() -> Workload:
    def action(model: nn.Module, out: torch.Tensor) -> torch.Tensor:
        print("about to fail")
        raise ValueError("the [red]user's[/red] own mistake")

    return _with_step("raises", action)


def out_of_memory() -> Workload:
    def action(model: nn.Module, out: torch.Tensor) -> torch.Tensor:
        torch.ones(1 << 40)
        return out

    return _with_step("out-of-memory", action)


def nan() -> Workload:
    return _with_step("nan", lambda model, out: out * float("nan"))


def zeros() -> Workload:
    return _with_step("zeros", lambda model, out: torch.zeros_like(out))


def double() -> Workload:
    return _with_step("double", lambda model, out: out * 2)


def stale() -> Workload:
    """Right once for each input, then the first output for ever: only the last timed output shows it."""
    seen: list[torch.Tensor] = []

    def action(model: nn.Module, out: torch.Tensor) -> torch.Tensor:
        seen.append(out)
        return out if len(seen) <= 3 else seen[0] + 1

    return _with_step("stale", action)


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
