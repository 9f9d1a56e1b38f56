from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from torch import nn

from gpubench.toggles.channels_last import CHANNELS_LAST
from gpubench.toggles.toggle import EvidenceResult

DO_NOTHING = dataclasses.replace(CHANNELS_LAST, apply=lambda context, value: None)


def net(kit, dimensions):
    return kit.workload(functools.partial(kit.Net, dimensions), inputs=kit.images(dimensions))


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_activations_have_channels_innermost(kit, dimensions, mode):
    context = kit.run({"channels_last": "on"}, net(kit, dimensions), mode=mode)
    assert CHANNELS_LAST.evidence(context, "on") == EvidenceResult(
        took_effect=True,
        detail="2 of 2 convolutions ran in channels-last; 2 of 2 inputs already were (at least 80% required)",
    )


@pytest.mark.parametrize("dimensions", [2, 3])
def test_an_apply_that_does_nothing_is_caught(kit, dimensions):
    context = kit.run({"channels_last": "on"}, net(kit, dimensions), replace={"channels_last": DO_NOTHING})
    proof = CHANNELS_LAST.evidence(context, "on")
    assert proof.took_effect is False
    assert "0 of 2 convolutions ran in channels-last; 0 of 2 inputs already were" in proof.detail


def test_off_shows_that_no_tensor_was_changed(kit):
    context = kit.run({"channels_last": "off"})
    proof = CHANNELS_LAST.evidence(context, "off")
    assert proof.took_effect is True
    assert "0 of 2 convolutions ran in channels-last; 0 of 2 inputs already were" in proof.detail


def test_off_is_not_failed_for_the_layout_that_the_compiler_chooses(kit):
    context = kit.run({"channels_last": "off", "compile": "default"})
    proof = CHANNELS_LAST.evidence(context, "off")
    assert proof.took_effect is True
    assert "2 of 2 convolutions ran in channels-last" in proof.detail
    assert "the compiler chose that layout" in proof.detail


def test_off_says_where_the_model_itself_has_the_layout(kit):
    work = kit.workload(lambda: kit.Net().to(memory_format=torch.channels_last))
    proof = CHANNELS_LAST.evidence(kit.run({"channels_last": "off"}, work), "off")
    assert proof.took_effect is True
    assert "the model itself uses that layout" in proof.detail


@pytest.mark.parametrize("dimensions", [2, 3])
def test_on_holds_in_compiled_code(kit, dimensions):
    context = kit.run({"channels_last": "on", "compile": "default"}, net(kit, dimensions))
    assert CHANNELS_LAST.evidence(context, "on").took_effect is True


class Reordered(nn.Module):
    """Hands its second convolution a contiguous tensor, as several normalizations do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).contiguous())


def test_activations_that_had_to_be_reordered_are_told(kit):
    proof = CHANNELS_LAST.evidence(kit.run({"channels_last": "on"}, kit.workload(Reordered)), "on")
    assert proof.took_effect is True
    assert "2 of 2 convolutions" in proof.detail
    assert "1 of 2 inputs already were and the others are reordered at each call" in proof.detail


class Mixed(nn.Module):
    """2-D and 3-D convolutions in one model."""

    def __init__(self) -> None:
        super().__init__()
        self.flat, self.deep = nn.Conv2d(4, 4, 3, padding=1), nn.Conv3d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.deep(self.flat(x)[:, :, None].expand(-1, -1, 4, -1, -1))


def test_each_convolution_gets_the_format_of_its_own_dimensions(kit):
    context = kit.prepare({"channels_last": "on"}, kit.workload(Mixed))
    assert context.model.flat.weight.is_contiguous(memory_format=torch.channels_last)
    assert context.model.deep.weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_tensors_that_are_both_layouts_prove_nothing(kit):
    # One channel, or one position in space: any strides are both layouts at once.
    work = kit.workload(lambda: nn.Sequential(nn.Conv2d(4, 1, 8), nn.Conv2d(1, 1, 1)), inputs=kit.images(side=8))
    context = kit.run({"channels_last": "on"}, work)
    proof = CHANNELS_LAST.evidence(context, "on")
    assert "1 of 1 convolutions ran in channels-last; 1 of 1 inputs already were" in proof.detail


def test_nothing_to_read_is_unknown(kit):
    work = kit.workload(lambda: nn.Sequential(nn.Conv2d(4, 1, 1)), inputs=kit.images(side=1))
    context = kit.run({"channels_last": "on"}, work)
    proof = CHANNELS_LAST.evidence(context, "on")
    assert proof.took_effect is None
    assert "no tensor has a recognizable layout" in proof.detail


def test_off_where_no_layout_can_be_seen_is_not_contradicted(kit):
    work = kit.workload(lambda: nn.Sequential(nn.Conv2d(4, 1, 1)), inputs=kit.images(side=1))
    proof = CHANNELS_LAST.evidence(kit.run({"channels_last": "off"}, work), "off")
    assert proof.took_effect is True
    assert proof.detail.startswith("no tensor has a recognizable layout: 0 of 0 convolutions")


def test_on_a_gpu_the_algorithms_are_told(kit):
    context = kit.run({"channels_last": "on"})
    context.device = torch.device("cuda")
    assert CHANNELS_LAST.evidence(context, "on").detail.endswith("; no kernel shows which algorithms were used")
    kernels = kit.trace(kernels=[("sm80_xmma_fprop_implicit_gemm_nhwc", 4e-6), ("nchwToNhwcKernel", 1e-6)]).kernels
    context.trace = dataclasses.replace(context.trace, kernels=kernels)
    proof = CHANNELS_LAST.evidence(context, "on")
    assert proof.took_effect is True
    assert "implicit GEMM 100%; reordering between NCHW and NHWC took another 25%" in proof.detail


def test_without_a_trace_nothing_is_claimed(kit):
    assert CHANNELS_LAST.evidence(kit.prepare({"channels_last": "on"}), "on").took_effect is None


def test_applies_where_there_is_a_layout(kit):
    assert CHANNELS_LAST.applies(kit.scope(convolution_dimensions=[3])) is None
    assert CHANNELS_LAST.applies(kit.scope(convolution_dimensions=[1])) == (
        "workload net has no 2-D or 3-D convolution"
    )
