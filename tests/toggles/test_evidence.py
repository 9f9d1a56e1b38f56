from __future__ import annotations

import functools

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from gpubench.measure.trace import trace_step
from gpubench.toggles.evidence import attention_backends, compute_operators, kept_results, layout
from gpubench.toggles.layout.channels_last import CHANNELS_LAST
from gpubench.toggles.numerics.precision import PRECISION


@pytest.mark.parametrize(
    ("shape", "strides", "found"),
    [
        ((2, 4, 8, 8), (256, 64, 8, 1), "contiguous"),
        ((2, 4, 8, 8), (256, 1, 32, 4), "channels_last"),
        ((2, 4, 2, 8, 8), (512, 128, 64, 8, 1), "contiguous"),
        ((2, 4, 2, 8, 8), (512, 1, 256, 32, 4), "channels_last"),
        ((2, 1, 8, 8), (64, 64, 8, 1), None),  # one channel
        ((2, 1, 8, 8), (64, 1, 8, 1), None),
        ((2, 4, 1, 1), (4, 1, 1, 1), None),  # one position in space
        ((2, 4, 1, 8), (32, 1, 32, 4), "channels_last"),
        ((2, 4, 8, 1), (32, 8, 1, 1), "contiguous"),
        ((2, 4, 8, 8), (1024, 1, 64, 8), "channels_last"),  # a slice of 8 channels
        ((2, 4, 8, 8), (256, 64, 1, 8), None),  # transposed: neither
        ((2, 4), (4, 1), None),
        ((), (), None),
    ],
)
def test_layout(shape, strides, found):
    assert layout(shape, strides) == found


@pytest.mark.parametrize(
    ("kernels", "took_effect"),
    [
        (["nvjet_tst_128x64", "sm80_xmma_fprop_implicit_gemm_bf16bf16", "triton_poi_fused_silu"], True),
        (["ampere_sgemm_128x64_tn", "nvjet_tst_128x64"], False),
        (["triton_poi_fused_silu"], None),
        (["triton_tem_fused_mm_3"], None),
        ([("nvjet_tst_128x64", 85e-6), ("triton_tem_fused_mm_3", 15e-6)], True),  # a majority whatever the other one is
        ([("nvjet_tst_128x64", 75e-6), ("triton_tem_fused_mm_3", 25e-6)], None),
        ([("nvjet_tst_128x64", 75e-6), ("ampere_sgemm_128x64_tn", 25e-6)], False),
        ([("nvjet_tst_128x64", 85e-6), ("ampere_sgemm_128x64_tn", 15e-6)], True),
    ],
)
def test_a_replayed_cuda_graph_is_read_from_its_kernels(kit, kernels, took_effect):
    context = kit.prepare({"precision": "bf16-autocast"})
    context.trace = kit.trace(kernels=kernels, graph=True)
    assert PRECISION.evidence(context, "bf16-autocast").took_effect is took_effect


@pytest.mark.parametrize(
    ("value", "kernels", "took_effect"),
    [
        ("on", ["sm80_xmma_fprop_nhwckrsc"], True),
        ("on", ["triton_poi_fused_silu"], None),
        ("on", ["void cudnn::ops::nchwToNhwcKernel<float>"], None),  # reorders, and computes nothing
        ("off", ["sm80_xmma_fprop_nhwckrsc"], False),
    ],
)
def test_the_layout_in_a_replayed_cuda_graph(kit, value, kernels, took_effect):
    context = kit.prepare({"channels_last": value})
    context.trace = kit.trace(kernels=kernels, graph=True)
    proof = CHANNELS_LAST.evidence(context, "on")
    assert proof.took_effect is took_effect
    if took_effect is not False:
        assert "a CUDA graph hides them" in proof.detail


def attend() -> None:
    query = torch.ones(1, 2, 4, 8)
    torch.nn.functional.scaled_dot_product_attention(query, query, query)


@pytest.mark.parametrize(("backend", "found"), [(SDPBackend.FLASH_ATTENTION, ("flash",)), (SDPBackend.MATH, ("math",))])
def test_the_attention_that_really_ran_on_a_cpu(backend, found):
    with sdpa_kernel(backend):
        assert attention_backends(trace_step(attend, cuda=False)) == found


def test_without_attention_there_is_no_backend():
    assert attention_backends(trace_step(lambda: torch.ones(2, 2) @ torch.ones(2, 2), cuda=False)) == ()


@pytest.mark.parametrize(
    ("operators", "kernels", "found"),
    [
        (["aten::_scaled_dot_product_flash_attention"], [], ("flash",)),
        (["aten::_scaled_dot_product_efficient_attention"], [], ("efficient",)),
        (["aten::_scaled_dot_product_cudnn_attention"], [], ("cudnn",)),
        (["aten::_scaled_dot_product_attention_math"], [], ("math",)),
        (
            ["aten::_scaled_dot_product_attention_math", "aten::_scaled_dot_product_flash_attention"],
            [],
            ("flash", "math"),
        ),
        (["aten::scaled_dot_product_attention"], [], ()),
        ([], ["void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, cutlass::half_t>>"], ("flash",)),
        ([], ["fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel)"], ("efficient",)),
        ([], ["cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3"], ("cudnn",)),
        ([], ["ampere_sgemm_128x64_tn"], ()),
    ],
)
def test_the_attention_that_ran_on_a_gpu(kit, operators, kernels, found):
    assert attention_backends(kit.trace(operators, kernels)) == found


@pytest.mark.parametrize("kept", [True, False])
def test_results_that_were_kept_are_not_counted_as_computed(kept):
    layer, x = torch.nn.Linear(4, 4), torch.randn(3, 4, requires_grad=True)
    save = functools.partial(create_selective_checkpoint_contexts, [torch.ops.aten.addmm.default] if kept else [])

    def step() -> None:
        checkpoint(lambda y: layer(y).sin().cos(), x, use_reentrant=False, context_fn=save).sum().backward()

    step()
    trace = trace_step(step, cuda=False)
    names = [operator.name for operator in compute_operators(trace)]
    assert (names.count("aten::addmm"), len(kept_results(trace))) == ((1, 1) if kept else (2, 0))
    assert names.count("aten::mm") == 2
