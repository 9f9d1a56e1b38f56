"""Workloads whose steps take a planted time, for the tests of planted faults. Loaded as FILE.py:NAME.

All compute the same matrix product on the same inputs, so that one reference serves them.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gpubench import Workload

FOLDER = Path(os.environ.get("GPUBENCH_FAULTS", "."))  # where a test leaves orders for steps under way
WORK = 60_000  # turns of a loop: about 2 ms, beside which a matrix product of 32 by 32 is nothing
SLEEP_S = 0.004


class Linear(nn.Module):
    """One small matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        return out


def inputs(batch: int, generator: torch.Generator) -> tuple[torch.Tensor]:
    return (torch.randn(batch, 32, generator=generator),)


def stepping(name: str, also: Callable[[torch.Tensor], None]) -> Workload:
    """The matrix product, and after it `also` with its output."""

    def infer(model: nn.Module, batch: tuple[torch.Tensor, ...], options: Any) -> torch.Tensor:
        out: torch.Tensor = model(batch[0])
        also(out)
        return out

    return Workload(name=name, item="row", batch_size=4, build=Linear, inputs=inputs, infer=infer)


def burn(turns: int) -> None:
    for _ in range(turns):
        pass


def tiny() -> Workload:
    """The matrix product alone."""
    return stepping("tiny", lambda out: None)


def burns() -> Workload:
    """A fixed amount of work, and 10 % more of it in bf16."""
    return stepping("burns", lambda out: burn(WORK + (WORK // 10 if out.dtype == torch.bfloat16 else 0)))


def heats() -> Workload:
    """4 ms a step, and four times that while a file `hot` is there; a quarter in bf16."""

    def wait(out: torch.Tensor) -> None:
        time.sleep(SLEEP_S * (4 if (FOLDER / "hot").exists() else 1) * (0.25 if out.dtype == torch.bfloat16 else 1))

    return stepping("heats", wait)


def sets_the_clock_back() -> Workload:
    """4 ms a step; after every 15 the wall clock is an hour further back."""
    real, calls = time.time, 0
    # Set before any timer is made: one that used this clock would take it from here.
    time.time = lambda: real() - 3600.0 * (calls // 15)

    def wait(out: torch.Tensor) -> None:
        nonlocal calls
        calls += 1
        time.sleep(SLEEP_S)

    return stepping("sets-the-clock-back", wait)


def slows_down() -> Workload:
    """1 ms for the first step, and 8 % more for each further one, up to 250 ms: more than noise on a busy machine."""
    calls = 0

    def wait(out: torch.Tensor) -> None:
        nonlocal calls
        calls += 1
        time.sleep(min(0.001 * 1.08**calls, 0.25))

    return stepping("slows-down", wait)


def changes() -> Workload:
    """1 ms a step, and 30 times that while a file `slow` is there."""
    return stepping("changes", lambda out: time.sleep(0.03 if (FOLDER / "slow").exists() else 0.001))


def stops() -> Workload:
    """4 ms a step; one that finds the file `stop` takes it away and is stopped for a second, as if by Ctrl-Z."""

    def wait(out: torch.Tensor) -> None:
        time.sleep(SLEEP_S)
        mark = FOLDER / "stop"
        if mark.exists():
            mark.unlink()
            subprocess.Popen(["sh", "-c", f"sleep 1; kill -CONT {os.getpid()}"])
            os.kill(os.getpid(), signal.SIGSTOP)

    return stepping("stops", wait)
