"""One watched step: what ran, what was called, what came out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpubench.workloads.loader import Loaded
from gpubench.workloads.observe import Observed, observe
from gpubench.workloads.workload import Workload


class Functional(nn.Module):
    """A convolution that is no module, and one that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.unused = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.Conv3d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight)


class Vae(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.ConvTranspose2d(4, 3, 3)

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x)


def seen(build: Any, *, mode: Any = "inference", meta: bool = True, **changes: Any) -> Observed:
    fields: dict[str, Any] = {
        "name": "mine",
        "item": "image",
        "batch_size": 4,
        "build": build,
        "inputs": lambda size, generator: (torch.randn(size, 3, 8, 8, generator=generator),),
    }
    case = Loaded(
        workload=Workload(**(fields | changes)),
        reference="mine.py:make",
        size="default",
        parameters={},
        source_hash="x",
    )
    with torch.device("meta" if meta else "cpu"):
        model = build()
    return observe(case, mode, model)


def test_convolutions_are_found_by_what_runs() -> None:
    found = seen(Functional)
    assert (found.device, found.convolution_dimensions(), found.called) == ("meta", [2], ("",))
    assert found.output.shape == (2, 4, 6, 6)


@pytest.mark.parametrize("kind", ["script", "trace", "compile"])
def test_a_model_in_another_form(kind: str) -> None:
    def build() -> Any:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        if kind == "compile":
            return torch.compile(model)
        return torch.jit.script(model) if kind == "script" else torch.jit.trace(model, torch.randn(1, 3, 8, 8))

    assert seen(build, meta=kind != "trace").convolution_dimensions() == [2]


def test_the_modules_that_the_step_itself_calls() -> None:
    found = seen(Vae, infer=lambda model, batch, options: model.encode(*batch))
    assert found.called == ("encoder",)
    training = seen(Vae, mode="training", loss=lambda model, batch: model.decoder(model.encode(*batch)).mean())
    assert training.called == ("encoder", "decoder")
    assert training.output.dim() == 0


def test_a_step_that_reads_values_runs_on_the_cpu() -> None:
    class Reads(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if float(x.sum()) else x

    assert seen(lambda: Reads(8, 8)).device == "cpu"


def test_autocast_of_the_workloads_own() -> None:
    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x)

    assert seen(lambda: Own(8, 8)).autocast == ("bfloat16",)
    assert seen(lambda: Own(8, 8), meta=False).autocast == ("bfloat16",)
    assert seen(lambda: nn.Linear(8, 8)).autocast == ()


def test_a_step_that_fails_says_why() -> None:
    found = seen(lambda: nn.Linear(5, 5))
    assert found.device is None
    assert "RuntimeError" in found.problem


def test_watching_leaves_nothing_behind() -> None:
    before = dict(vars(torch.nn.modules.module)), torch.autocast.__enter__
    seen(lambda: nn.Conv2d(3, 4, 3), meta=False)
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks
    assert (dict(vars(torch.nn.modules.module)), torch.autocast.__enter__) == before
