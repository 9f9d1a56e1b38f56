from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpubench.toggles.attention.sdpa_backend import SDPA_BACKEND
from gpubench.toggles.toggle import in_force

IDLE = {"sdpa_backend": dataclasses.replace(SDPA_BACKEND, apply=in_force)}


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize(("value", "ran"), [("auto", "flash"), ("math", "math"), ("flash", "flash")])
def test_attention_runs_in_the_backend(kit, attending, value, ran, mode):
    context = kit.run({"sdpa_backend": value}, kit.workload(attending.Layers, inputs=attending.tokens), mode=mode)
    proof = SDPA_BACKEND.evidence(context, value)
    assert (proof.took_effect, proof.detail) == (True, f"attention ran in {ran}")


def test_the_output_is_the_same(kit, attending):
    work = kit.workload(attending.Layers, inputs=attending.tokens)
    outputs = []
    for value in ("auto", "math"):
        context = kit.prepare({"sdpa_backend": value}, work)
        outputs.append(context.step.forward(context.batches[0]))
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("value", ["math", "flash"])
def test_an_apply_that_does_nothing_is_caught(kit, attending, value):
    work = kit.workload(attending.Layers, inputs=attending.tokens)
    proof = SDPA_BACKEND.evidence(kit.run({"sdpa_backend": value}, work, replace=IDLE), value)
    assert proof.took_effect is False
    assert proof.detail == "torch may choose from math, flash, efficient, cudnn; attention ran in flash"


def test_what_the_models_own_code_chooses_is_the_baseline_and_nothing_else(kit, attending):
    class Pinned(attending.Layers):
        def forward(self, x):
            with sdpa_kernel(SDPBackend.MATH):
                return super().forward(x)

    work = kit.workload(Pinned, inputs=attending.tokens)
    assert SDPA_BACKEND.evidence(kit.run({"sdpa_backend": "auto"}, work), "auto").took_effect is True
    proof = SDPA_BACKEND.evidence(kit.run({"sdpa_backend": "flash"}, work), "flash")
    assert proof.took_effect is False
    assert "attention ran in math: the step's own code chooses for itself" in proof.detail


@pytest.mark.parametrize(("value", "took_effect"), [("auto", True), ("math", False), ("flash", False)])
def test_attention_by_hand_has_no_backend(kit, attending, value, took_effect):
    context = kit.run({"sdpa_backend": value}, kit.workload(attending.ByHand, inputs=attending.tokens))
    proof = SDPA_BACKEND.evidence(context, value)
    assert (proof.took_effect, proof.detail) == (
        took_effect,
        "no operator of scaled_dot_product_attention is visible",
    )


@pytest.mark.parametrize(("build", "took_effect"), [("Layers", True), ("ByHand", False)])
def test_where_nothing_is_visible_a_pass_in_eager_code_tells_of_math(kit, attending, build, took_effect):
    context = kit.prepare({"sdpa_backend": "math"}, kit.workload(getattr(attending, build), inputs=attending.tokens))
    context.trace = kit.trace(["aten::bmm"], graph=True)
    proof = SDPA_BACKEND.evidence(context, "math")
    assert proof.took_effect is took_effect, proof


def test_a_pass_that_fails_leaves_it_unknown(kit, attending):
    context = kit.prepare({"sdpa_backend": "math"}, kit.workload(attending.Layers, inputs=attending.tokens))
    context.trace, context.batches = kit.trace(["aten::bmm"], graph=True), [()]
    proof = SDPA_BACKEND.evidence(context, "math")
    assert proof.took_effect is None
    assert "one more forward pass, in eager code, failed: IndexError" in proof.detail


@pytest.mark.parametrize(
    ("value", "kernel", "took_effect"),
    [
        ("flash", "void pytorch_flash::flash_fwd_kernel<...>", True),
        ("flash", "fmha_cutlassF_bf16_aligned_64x64_rf_sm80", False),
        ("efficient", "fmha_cutlassF_f32_aligned_64x64_rf_sm80", True),
        ("cudnn", "cudnn_generated_fort_native_sdpa_sm90_flash_fprop", True),
        ("cudnn", "ampere_sgemm_128x64", False),
    ],
)
def test_in_a_cuda_graph_the_kernels_tell(kit, attending, value, kernel, took_effect):
    context = kit.prepare({"sdpa_backend": value}, kit.workload(attending.Layers, inputs=attending.tokens))
    context.device, context.trace = torch.device("cuda"), kit.trace(["aten::copy_"], [kernel], graph=True)
    assert SDPA_BACKEND.evidence(context, value).took_effect is took_effect


def test_without_a_trace_nothing_is_claimed(kit, attending):
    context = kit.prepare({"sdpa_backend": "math"}, kit.workload(attending.Layers, inputs=attending.tokens))
    assert SDPA_BACKEND.evidence(context, "math").took_effect is None


def test_what_cannot_run_has_its_sentence(kit):
    def unmet(value, precision="", device=kit.AMPERE, **changes):
        return SDPA_BACKEND.unmet(kit.scope(device, **changes), value, {"precision": precision} if precision else {})

    assert SDPA_BACKEND.applies(kit.scope()) == "workload net has no attention"
    assert SDPA_BACKEND.applies(kit.scope(attention=True)) is None
    assert unmet("efficient", device=kit.CPU) == "needs a CUDA device, this is A CPU"
    assert unmet("cudnn", device=kit.CPU) == "needs a CUDA device, this is A CPU"
    assert unmet("flash", device=kit.TURING) == "needs compute capability 8.0, NVIDIA T4 has 7.5"
    assert unmet("flash", "fp32", device=kit.CPU) is None
    assert unmet("flash", "bf16-autocast") is None
    assert unmet("flash", "fp32") == "computes in 16 bits only on a GPU, and precision=fp32 does not"
    assert unmet("flash", "torch-default").startswith("needs precision=bf16-autocast or ")
    assert unmet("flash", "as-built", dtypes=["bf16"]) is None
    assert unmet("cudnn", "as-built", dtypes=["fp32"]) == (
        "computes in 16 bits only on a GPU, and precision=as-built does not"
    )
    assert unmet("efficient", "fp32") is None


@pytest.mark.parametrize("value", list(SDPA_BACKEND.values))
def test_the_printed_lines_choose(value):
    names = {"torch": torch, "model": nn.Identity()}
    exec(SDPA_BACKEND.usage(value, None), names)
    x = torch.randn(1, 2, 3, 8)
    if value in ("efficient", "cudnn"):  # of which a CPU has none
        with pytest.raises(RuntimeError):
            F.scaled_dot_product_attention(x, x, x)
    else:
        assert F.scaled_dot_product_attention(x, x, x).shape == x.shape
