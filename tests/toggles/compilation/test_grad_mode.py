from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from gpubench.toggles.compilation.grad_mode import GRAD_MODE
from gpubench.toggles.toggle import in_force

IDLE = {"grad_mode": dataclasses.replace(GRAD_MODE, apply=in_force)}


@pytest.mark.parametrize("value", list(GRAD_MODE.values))
def test_the_output_tells_the_mode(kit, value):
    context = kit.run({"grad_mode": value})
    proof = GRAD_MODE.evidence(context, value)
    assert proof.took_effect is True, proof
    assert proof.detail.startswith("the outputs of the step ")


@pytest.mark.parametrize("value", ["inference_mode", "grad"])
def test_an_apply_that_does_nothing_is_caught(kit, value):
    context = kit.run({"grad_mode": value}, replace=IDLE)
    proof = GRAD_MODE.evidence(context, value)
    assert proof.took_effect is False
    assert proof.detail.endswith("are neither inference tensors nor require gradients")


@pytest.mark.parametrize("ran", ["no_grad", "inference_mode", "grad"])
@pytest.mark.parametrize("value", ["inference_mode", "grad"])
def test_another_mode_is_caught(kit, value, ran):
    faulty = dataclasses.replace(GRAD_MODE, apply=lambda context, _: GRAD_MODE.apply(context, ran))
    context = kit.run({"grad_mode": value}, replace={"grad_mode": faulty})
    assert GRAD_MODE.evidence(context, value).took_effect is (value == ran)


class Label(nn.Module):
    """Whole numbers, which have no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).mean((2, 3)).argmax(1)


@pytest.mark.parametrize("value", list(GRAD_MODE.values))
def test_where_the_output_cannot_tell_the_modules_do(kit, value):
    context = kit.run({"grad_mode": value}, kit.workload(Label))
    proof = GRAD_MODE.evidence(context, value)
    assert proof.took_effect is True, proof
    assert GRAD_MODE.evidence(context, "grad").took_effect is (value == "grad")


class Own(nn.Module):
    """Switches the mode itself."""

    def __init__(self, mode) -> None:
        super().__init__()
        self.layer, self.mode = nn.Linear(8, 3), mode

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with self.mode():
            return self.layer(x.mean((1, 2)))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_what_the_models_own_code_switches_is_a_part_of_the_baseline(kit, mode):
    work = kit.workload(lambda: Own(mode))
    assert GRAD_MODE.evidence(kit.run({"grad_mode": "no_grad"}, work), "no_grad").took_effect is True
    expected = mode is not torch.inference_mode and mode is not torch.no_grad
    assert GRAD_MODE.evidence(kit.run({"grad_mode": "grad"}, work), "grad").took_effect is expected


def test_without_a_trace_nothing_is_claimed(kit):
    assert GRAD_MODE.evidence(kit.prepare({"grad_mode": "grad"}), "grad").took_effect is None


def test_it_is_for_inference(kit):
    assert GRAD_MODE.applies(kit.scope()) is None
    assert GRAD_MODE.applies(kit.scope(mode="training")) == "training needs gradients"


@pytest.mark.parametrize("value", list(GRAD_MODE.values))
def test_the_printed_lines_set_the_mode(value):
    names = {"torch": torch}
    exec(GRAD_MODE.usage(value, None), names)
    with names["grad_mode"]():
        assert torch.is_grad_enabled() == (value == "grad")
        assert torch.is_inference_mode_enabled() == (value == "inference_mode")


@pytest.mark.slow
@pytest.mark.parametrize("value", list(GRAD_MODE.values))
def test_compiled_code_tells_it_too(kit, value):
    context = kit.run({"grad_mode": value, "compile": "default"})
    proof = GRAD_MODE.evidence(context, value)
    assert proof.took_effect is True, proof
    idle = kit.run({"grad_mode": value, "compile": "default"}, replace=IDLE)
    assert GRAD_MODE.evidence(idle, value).took_effect is (value == "no_grad")
