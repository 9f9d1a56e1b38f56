"""Weights really come from the file, in the dtype, everywhere that layers share them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from gpubench.toggles.memory import weight_loading as toggle
from gpubench.toggles.memory.weight_loading import WEIGHT_LOADING
from gpubench.toggles.printed import run_lines
from gpubench.toggles.toggle import in_force
from gpubench.worker.step import Stepper

safetensors = pytest.mark.skipif(bool(toggle.has_safetensors(None)), reason="safetensors is not installed")
BF16 = {"precision": "bf16-weights"}
IDLE = {"weight_loading": dataclasses.replace(WEIGHT_LOADING, apply=in_force)}


class Shared(nn.Module):
    """Two layers with one weight, an LSTM with a list of weights of its own, a buffer and one that is not stored."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.memory = nn.LSTM(4, 4, batch_first=True)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("scale", torch.full((4,), 1.5), persistent=False)
        self.first.bias.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x.flatten(1).mean(1, keepdim=True).expand(-1, 4) + self.scale)
        return self.second(self.first(self.memory(x.unsqueeze(1))[0].squeeze(1)))


def output(context) -> torch.Tensor:
    stepper = Stepper(context)
    stepper.run(0)
    return stepper.output


@safetensors
@pytest.mark.parametrize(
    ("value", "precision"),
    [
        ("safetensors-final", {}),
        ("safetensors-final", BF16),
        ("fp32-convert", BF16),
        ("fp32-convert", {"precision": "fp16-weights"}),
    ],
)
@pytest.mark.parametrize("build", [None, Shared])
def test_the_weights_come_from_the_file(kit, value, precision, build):
    work = kit.workload(build) if build else kit.workload()
    plain = kit.prepare({**precision}, work)
    context = kit.prepare({**precision, "weight_loading": value}, work)
    assert torch.equal(output(context), output(plain))
    found = WEIGHT_LOADING.evidence(context, value)
    assert found.took_effect is True, found
    assert ("converted to" in found.detail) == (value == "fp32-convert")
    others = {each: WEIGHT_LOADING.evidence(context, each).took_effect for each in WEIGHT_LOADING.values}
    assert others == {each: each == value for each in WEIGHT_LOADING.values}
    assert context.load_time_s is not None and context.load_time_s > 0
    assert context.load_peak_bytes is not None
    for (name, mine), (_, theirs) in zip(context.model.named_parameters(), plain.model.named_parameters(), strict=True):
        assert (mine.dtype, mine.requires_grad, mine.stride()) == (theirs.dtype, theirs.requires_grad, theirs.stride())
        assert not mine.is_meta, name


@safetensors
def test_what_is_loaded_in_its_final_dtype_is_the_mapped_file(kit):
    context = kit.prepare({**BF16, "weight_loading": "safetensors-final"})
    weights = len(list(context.model.parameters()))
    detail = WEIGHT_LOADING.evidence(context, "safetensors-final").detail
    assert f"{weights} of the model's {weights} weights are those that were loaded, as bfloat16 in the file" in detail
    assert f"{weights} are the mapped file itself" in detail


@safetensors
def test_layers_that_share_a_weight_still_do(kit):
    context = kit.prepare({"weight_loading": "safetensors-final"}, kit.workload(Shared), mode="training")
    model = context.model
    assert model.first.weight is model.second.weight
    before = model.first.weight.detach().clone()
    kit.step(context)
    assert not torch.equal(before, model.first.weight)
    assert model.memory._flat_weights[0] is model.memory.weight_ih_l0
    assert WEIGHT_LOADING.evidence(context, "safetensors-final").took_effect is True


@safetensors
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_it_holds_beside_what_changes_the_weights_later(kit, mode):
    beside = {**BF16, "channels_last": "on", "weight_loading": "safetensors-final"}
    context = kit.run(beside, mode=mode)
    assert WEIGHT_LOADING.evidence(context, "safetensors-final").took_effect is True


@safetensors
def test_a_layout_of_the_models_own_is_kept(kit):
    def build() -> nn.Module:
        return kit.Net().to(memory_format=torch.channels_last)

    context = kit.prepare({"weight_loading": "safetensors-final"}, kit.workload(build))
    assert context.model.body[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not context.model.body[0].weight.is_contiguous()


@safetensors
@pytest.mark.parametrize("value", ["fp32-convert", "safetensors-final"])
def test_an_apply_that_does_nothing_is_caught(kit, value):
    context = kit.prepare({**BF16, "weight_loading": value}, replace=IDLE)
    found = WEIGHT_LOADING.evidence(context, value)
    assert (found.took_effect, found.detail) == (False, "no weights were loaded from a file")
    assert WEIGHT_LOADING.evidence(context, "built").took_effect is True
    assert (context.load_time_s, context.load_peak_bytes) == (None, None)


@safetensors
def test_weights_that_are_replaced_afterwards_are_caught(kit):
    context = kit.prepare({"weight_loading": "safetensors-final"})
    context.model.head.weight = nn.Parameter(torch.zeros(3, 8))
    assert WEIGHT_LOADING.evidence(context, "safetensors-final").took_effect is False


@safetensors
def test_in_fp32_there_is_nothing_to_convert(kit):
    scope = kit.scope()
    assert WEIGHT_LOADING.unmet(scope, "fp32-convert", {"precision": "fp32"}) == (
        "needs precision=bf16-weights or fp16-weights"
    )
    assert WEIGHT_LOADING.unmet(scope, "safetensors-final", {"precision": "fp32"}) is None
    context = kit.prepare({"weight_loading": "fp32-convert"})  # as nobody can ask for it
    assert WEIGHT_LOADING.evidence(context, "fp32-convert").took_effect is False


def test_without_the_package_it_is_skipped(kit, monkeypatch):
    monkeypatch.setattr(toggle.importlib.util, "find_spec", lambda name: None)
    for value in ("fp32-convert", "safetensors-final"):
        assert WEIGHT_LOADING.unmet(kit.scope(), value) == (
            "needs the package safetensors (pip install 'gpubench-torch[loading]')"
        )
    assert WEIGHT_LOADING.unmet(kit.scope(), "built") is None


@safetensors
@pytest.mark.parametrize("value", ["fp32-convert", "safetensors-final"])
def test_the_printed_lines_load_a_file(kit, value, tmp_path, monkeypatch):
    from safetensors.torch import save_file

    monkeypatch.chdir(tmp_path)
    model, device = kit.Net(), torch.device("cpu")
    dtype = torch.float32 if value == "fp32-convert" else torch.bfloat16
    state = {name: weight.detach().to(dtype) for name, weight in model.state_dict().items()}
    save_file(state, tmp_path / ("weights-fp32.safetensors" if value == "fp32-convert" else "weights.safetensors"))
    with torch.device("meta"):
        empty = kit.Net()
    loaded = run_lines(WEIGHT_LOADING.usage(value, None), model=empty, device=device)["model"]
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, state[name].bfloat16())
