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


class Modulated(nn.Module):
    """Weights for each sample, from one that is stored."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.style = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.Linear(8, 3)
        self.positions = nn.Parameter(torch.zeros(1, 3, 8, 8))
        self.register_buffer("blur", torch.ones(4, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight[None] * self.style(x[:, 0, 0])[:, None, :, None, None]
        x = (x + self.positions).reshape(1, -1, 8, 8)
        x = F.conv2d(x, weight.reshape(-1, 3, 3, 3), groups=weight.shape[0])
        return F.conv2d(x.reshape(-1, 4, 6, 6), self.blur, groups=4)


def normed(wrap: Any) -> Any:
    return lambda: nn.Sequential(wrap(nn.Conv2d(3, 4, 3)), nn.ReLU())


@pytest.mark.filterwarnings("ignore")  # torch calls the older forms deprecated
@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize(
    ("build", "unconvolved"),
    [
        (Functional, ("unused.weight",)),
        (Modulated, ("positions",)),
        (normed(nn.utils.parametrizations.spectral_norm), ()),
        (normed(nn.utils.parametrizations.weight_norm), ("0.parametrizations.weight.original0",)),  # the norms
        (normed(nn.utils.spectral_norm), ()),
        (normed(nn.utils.weight_norm), ("0.weight_g",)),
    ],
)
def test_weights_are_followed_to_the_convolutions_that_use_them(build: Any, unconvolved: Any, mode: str) -> None:
    found = seen(build, mode=mode, loss=lambda model, batch: model(*batch).mean())
    assert found.unconvolved == unconvolved


@pytest.mark.parametrize("kind", ["script", "trace", "compile"])
def test_a_model_in_another_form(kind: str) -> None:
    def build() -> Any:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        if kind == "compile":
            return torch.compile(model)
        return torch.jit.script(model) if kind == "script" else torch.jit.trace(model, torch.randn(1, 3, 8, 8))

    found = seen(build, meta=kind != "trace")
    assert (found.convolution_dimensions(), found.unconvolved) == ([2], ())


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


class Attends(nn.Module):
    """Attention without a module of that name, which the meta device takes apart into other operators."""

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("meta", [True, False])
def test_attention_is_found_by_the_function_that_is_called(mode: Any, meta: bool) -> None:
    found = seen(Attends, mode=mode, meta=meta, loss=lambda model, batch: model(batch[0]).mean())
    assert found.device is not None
    assert found.attention()
    assert not seen(Functional).attention()
