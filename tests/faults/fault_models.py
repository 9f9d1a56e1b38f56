"""User workloads of the planted faults, loaded as FILE.py:NAME. What spoils them is the toggle in `fault_toggle`."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch
from torch import nn

from gpubench import Workload

PAUSE_S = 0.005  # of an honest step: what a fault leaves out makes it faster beyond doubt


class Paced(nn.Module):
    """A small matrix product that takes its time. `pause_s` is what a faster configuration leaves out."""

    def __init__(self, pause_s: float = PAUSE_S) -> None:
        super().__init__()
        self.pause_s = pause_s
        self.layer = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pause_s:
            time.sleep(self.pause_s)
        return self.layer(x)


def inputs(batch: int, generator: torch.Generator) -> tuple[torch.Tensor]:
    return (torch.randn(batch, 32, generator=generator),)


def paced() -> Workload:
    return Workload(name="paced", item="row", batch_size=4, build=Paced, inputs=inputs)


def leisurely() -> Workload:
    """20 ms a step, 10 where it is hurried: two that are as fast stay so on a busy machine too."""
    return Workload(name="leisurely", item="row", batch_size=4, build=lambda: Paced(0.02), inputs=inputs)


def sleeps() -> Workload:
    """20 ms a step: 50 steps per second. Its end is waited for awake: on a busy machine a sleep ends late."""

    def infer(model: nn.Module, batch: tuple[torch.Tensor, ...], options: object) -> torch.Tensor:
        end = time.perf_counter() + 0.02
        time.sleep(0.015)
        output = model(batch[0])
        while time.perf_counter() < end:
            pass
        return output

    return Workload(name="sleeps", item="row", batch_size=1, build=lambda: Paced(0.0), inputs=inputs, infer=infer)


def slow() -> Workload:
    """0.15 s a step, so that there are few of them: each may take much memory."""
    return Workload(name="slow", item="row", batch_size=1, build=lambda: Paced(0.15), inputs=inputs)


def built_in_much_room() -> Workload:
    """Takes 300 MB while it is built, freed before the first step."""

    def build() -> nn.Module:
        room = torch.ones(75_000_000)
        del room
        return Paced()

    return Workload(name="roomy", item="row", batch_size=1, build=build, inputs=inputs)


class Hungry(nn.Module):
    """Takes 64 MiB for each row of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        room = x.repeat_interleave(2**19, dim=1)
        return room[:, ::100000] * self.weight


def hungry() -> Workload:
    return Workload(name="hungry", item="row", batch_size=1, build=Hungry, inputs=inputs)


def hangs_in_bf16() -> Workload:
    def infer(model: nn.Module, batch: tuple[torch.Tensor, ...], options: object) -> torch.Tensor:
        out = model(batch[0])
        if out.dtype == torch.bfloat16:
            time.sleep(3600)
        return out

    return Workload(name="hangs", item="row", batch_size=4, build=Paced, inputs=inputs, infer=infer)


class Product(nn.Module):
    """One product: inductor makes no kernel of its own for it, and has compiled it in about a second."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def product() -> Workload:
    def infer(model: nn.Module, batch: tuple[torch.Tensor, ...], options: object) -> torch.Tensor:
        time.sleep(PAUSE_S)  # beside the compiled code: a steady step takes no time to be sure of
        return model(batch[0])

    return Workload(name="product", item="row", batch_size=1, build=Product, inputs=inputs, infer=infer)


class Fused(Product):
    """A product and what inductor makes one C++ kernel of."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.gelu(self.layer(x)) * 2


def fused() -> Workload:
    """Where a test says so, its code names the folder for compiled code itself, as some users' code does."""

    def build() -> nn.Module:
        named = Path(os.environ["GPUBENCH_TEST_FOLDER"], "cache.txt")
        if named.exists():
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = named.read_text()
        return Fused()

    return Workload(name="fused", item="row", batch_size=4, build=build, inputs=inputs)


class Hidden(nn.Module):
    """Its last step hides that bf16 is far off: positions times frequencies need more than 8 bits."""

    def __init__(self, last: torch.Tensor, skip: bool) -> None:
        super().__init__()
        self.first, self.last, self.skip = nn.Linear(32, 64), nn.Parameter(last), skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        wave = torch.sin(hidden * (torch.arange(64) * 37.3).to(hidden.dtype))
        out = (wave.float() @ self.last.T) if self.last.dim() == 2 else wave[:, :32].float() * self.last
        return x + out if self.skip else out


def zero_last() -> Workload:
    """Begins at zero, as diffusion models do."""
    return Workload(
        name="zero", item="row", batch_size=8, build=lambda: Hidden(torch.zeros(32, 64), False), inputs=inputs,
        loss=lambda model, batch: (model(*batch) - batch[0]).square().mean(),
    )  # fmt: skip


def frozen_last() -> Workload:
    """No gradient gets past its last layer."""

    def build() -> nn.Module:
        model = Hidden(torch.zeros(32, 64), False)
        model.last.requires_grad_(False)
        return model

    return Workload(
        name="frozen", item="row", batch_size=8, build=build, inputs=inputs,
        loss=lambda model, batch: (model(*batch) - batch[0]).square().mean(),
    )  # fmt: skip


def tiny_branch() -> Workload:
    """LayerScale: the output is the input, whatever the branch does."""
    return Workload(
        name="tiny", item="row", batch_size=8, build=lambda: Hidden(torch.full((32,), 1e-5), True), inputs=inputs,
        loss=lambda model, batch: (model(*batch) - batch[0]).square().mean(),
    )  # fmt: skip


def mixed() -> Workload:
    """What can be compared, beside what cannot: text, nothing, rounding noise, and padding that is infinite."""

    def infer(model: nn.Module, batch: tuple[torch.Tensor, ...], options: object) -> dict[str, object]:
        logits = model(batch[0])
        noise = (logits + 1000) - 1000 - logits
        padded = torch.cat([logits, torch.full_like(logits, -torch.inf)], 1)
        return {"logits": padded, "noise": noise, "none": noise[:0], "text": "a cat", "order": logits.argsort(-1)}

    return Workload(
        name="mixed", item="row", batch_size=32, build=Product, inputs=inputs, infer=infer, compare={"order": "rank"}
    )  # fmt: skip


def in_parts() -> Workload:
    """Calls a part of the model, so that compiling the whole compiles nothing."""

    def infer(model: nn.Module, batch: tuple[torch.Tensor, ...], options: object) -> torch.Tensor:
        return torch.relu(model.layer(batch[0]))  # type: ignore[operator]

    return Workload(name="parts", item="row", batch_size=4, build=Paced, inputs=inputs, infer=infer)


def profiled(how: str = "hang") -> Workload:
    """Hangs or dies as soon as it is profiled."""

    def infer(model: nn.Module, batch: tuple[torch.Tensor, ...], options: object) -> torch.Tensor:
        if torch.autograd._profiler_enabled():
            if how == "die":
                os.kill(os.getpid(), signal.SIGSEGV)
            time.sleep(3600)
        return model(batch[0])

    return Workload(name="profiled", item="row", batch_size=4, build=Paced, inputs=inputs, infer=infer)
