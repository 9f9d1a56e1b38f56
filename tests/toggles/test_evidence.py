from __future__ import annotations

import pytest

from gpubench.measure.trace import Trace
from gpubench.toggles.channels_last import CHANNELS_LAST
from gpubench.toggles.evidence import kernel_dtype, layout
from gpubench.toggles.precision import PRECISION


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
    ("name", "dtype"),
    [
        ("sm80_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc", "bf16"),
        ("ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_tn", "bf16"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, cutlass::bfloat16_t>>", "bf16"),
        ("nvjet_tst_128x64_64x8_2x1_v_bz_TNT", "bf16"),
        ("ampere_fp16_s16816gemm_fp16_64x64_ldg8_f2f_stages_64x5_tn", "fp16"),
        ("sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc", "fp16"),
        ("turing_fp16_s1688gemm_fp16_128x128_ldg8_f2f_tn", "fp16"),
        ("volta_h884gemm_64x32_ldg8_tn", "fp16"),
        ("nvjet_hsh_64x8_64x16_4x1_v_bz_TNT", "fp16"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, cutlass::half_t>>", "fp16"),
        ("sm80_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32_nhwckrsc", "tf32"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_s1688gemm_128x64_16x6_tn_align4>", "tf32"),
        ("ampere_sgemm_128x64_tn", "fp32"),
        ("void cutlass::Kernel2<cutlass_80_simt_sgemm_128x64_8x5_tn_align1>", "fp32"),
        ("void at::native::im2col_kernel<int>", None),
    ],
)
def test_kernel_dtype(name, dtype):
    assert kernel_dtype(name) == dtype


def replay(*kernels: str) -> Trace:
    return Trace(operators=(), kernels=kernels, names=frozenset({"cudaGraphLaunch"}))


@pytest.mark.parametrize(
    ("kernels", "took_effect"),
    [
        (["nvjet_tst_128x64", "sm80_xmma_fprop_implicit_gemm_bf16bf16", "triton_poi_fused_silu"], True),
        (["ampere_sgemm_128x64_tn", "nvjet_tst_128x64"], False),
        (["triton_poi_fused_silu"], None),
    ],
)
def test_a_replayed_cuda_graph_is_read_from_its_kernels(kit, kernels, took_effect):
    subject = kit.prepare({"precision": "bf16-autocast"})
    subject.trace = replay(*kernels)
    assert PRECISION.evidence(subject, "bf16-autocast").took_effect is took_effect


@pytest.mark.parametrize(
    ("value", "kernels", "took_effect"),
    [("on", ["sm80_xmma_fprop_nhwckrsc"], True), ("on", ["triton_poi_fused_silu"], None), ("off", ["x_nhwc"], False)],
)
def test_the_layout_in_a_replayed_cuda_graph(kit, value, kernels, took_effect):
    subject = kit.prepare({"channels_last": value})
    subject.trace = replay(*kernels)
    proof = CHANNELS_LAST.evidence(subject, "on")
    assert proof.took_effect is took_effect
    if took_effect is not False:
        assert "a CUDA graph hides them" in proof.detail
