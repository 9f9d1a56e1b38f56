from __future__ import annotations

import dataclasses

import pytest
import torch

from gpubench.toggles.numerics.cudnn_benchmark import CUDNN_BENCHMARK
from gpubench.toggles.toggle import EvidenceResult

DO_NOTHING = dataclasses.replace(CUDNN_BENCHMARK, apply=lambda context, value: None)


@pytest.fixture
def cudnn(monkeypatch):
    """cuDNN, which a machine without a GPU lacks."""
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)


@pytest.mark.parametrize("value", ["off", "on"])
def test_the_flag_follows_the_value(kit, value):
    torch.backends.cudnn.benchmark = value == "off"
    kit.prepare({"cudnn_benchmark": value})
    assert torch.backends.cudnn.benchmark is (value == "on")


def test_an_apply_that_does_nothing_is_caught(kit):
    context = kit.run({"cudnn_benchmark": "on"}, replace={"cudnn_benchmark": DO_NOTHING})
    assert CUDNN_BENCHMARK.evidence(context, "on") == EvidenceResult(
        took_effect=False, detail="torch.backends.cudnn.benchmark is False"
    )


def test_a_flag_that_stayed_on_is_caught(kit):
    torch.backends.cudnn.benchmark = True
    context = kit.run({"cudnn_benchmark": "off"}, replace={"cudnn_benchmark": DO_NOTHING})
    assert CUDNN_BENCHMARK.evidence(context, "off").took_effect is False


@pytest.mark.skipif(torch.backends.cudnn.is_available(), reason="needs a torch without cuDNN")
def test_the_flag_means_nothing_without_cudnn(kit):
    context = kit.run({"cudnn_benchmark": "on"})
    assert CUDNN_BENCHMARK.evidence(context, "on") == EvidenceResult(
        took_effect=False,
        detail="torch.backends.cudnn.benchmark is True, but cuDNN is not available or not enabled",
    )


def test_convolutions_that_bypass_cudnn_are_caught(kit, cudnn):
    context = kit.run({"cudnn_benchmark": "on"})  # on a CPU they do
    proof = CUDNN_BENCHMARK.evidence(context, "on")
    assert proof.took_effect is False
    assert "0 cuDNN convolution operators and 0 cuDNN kernels ran in the step" in proof.detail


@pytest.mark.parametrize(
    ("operators", "kernels", "took_effect"),
    [
        (["aten::convolution", "aten::cudnn_convolution"], [], True),
        ([], ["void cudnn::engines_precompiled::nchwToNhwcKernel<...>"], True),
        ([], ["sm80_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32_nhwckrsc"], True),
        ([], ["triton_poi_fused_add"], None),
        (["aten::convolution", "aten::_conv_depthwise2d"], [], False),
    ],
)
def test_what_a_step_on_a_gpu_shows(kit, cudnn, operators, kernels, took_effect):
    context = kit.prepare({"cudnn_benchmark": "on"})
    context.trace = kit.trace(operators, kernels)
    assert CUDNN_BENCHMARK.evidence(context, "on").took_effect is took_effect


def test_the_algorithms_that_ran_are_told(kit, cudnn):
    context = kit.prepare({"cudnn_benchmark": "on"})
    context.trace = kit.trace(
        ["aten::cudnn_convolution"], [("cudnn_winograd", 3e-6), ("implicit_convolve_sgemm", 1e-6)]
    )
    detail = CUDNN_BENCHMARK.evidence(context, "on").detail
    assert "compute time by algorithm: Winograd 75%, implicit GEMM 25%" in detail
    context.trace = kit.trace(["aten::cudnn_convolution"])
    assert "no kernel shows which algorithms were used" in CUDNN_BENCHMARK.evidence(context, "on").detail


def test_convolutions_that_nobody_sees_are_unknown_for_on_and_no_matter_for_off(kit, cudnn):
    context = kit.prepare({"cudnn_benchmark": "on"})
    context.trace = kit.trace(["aten::add"], ["triton_poi_fused_add"])
    proof = CUDNN_BENCHMARK.evidence(context, "on")
    assert proof.took_effect is None
    assert proof.detail.endswith("no convolution is visible, so whether cuDNN ran is unknown")
    kit.prepare({"cudnn_benchmark": "off"})
    assert CUDNN_BENCHMARK.evidence(context, "off").took_effect is True


def test_without_a_trace_nothing_is_claimed(kit, cudnn):
    assert CUDNN_BENCHMARK.evidence(kit.prepare({"cudnn_benchmark": "on"}), "on").took_effect is None


def test_applies_to_convolutions_on_cuda(kit):
    assert CUDNN_BENCHMARK.applies(kit.scope(kit.AMPERE)) is None
    assert CUDNN_BENCHMARK.applies(kit.scope()) == "cuDNN needs a CUDA device, this is A CPU"
    assert CUDNN_BENCHMARK.applies(kit.scope(kit.AMPERE, convolution_dimensions=[])) == (
        "workload net has no convolution"
    )
    assert CUDNN_BENCHMARK.unmet(kit.scope(), "on") == "needs a CUDA device, this is A CPU"
