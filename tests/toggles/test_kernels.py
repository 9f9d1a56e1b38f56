"""What kernels' names and times tell, from names that libraries really use; no GPU needed."""

from __future__ import annotations

import pytest

from gpubench.toggles.kernels import Share, algorithms, compute_kernels, family, kernel_dtype, share_in, top


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
        ("void implicit_convolve_kernel<int, float, float, 128>", "fp32"),
        ("void gemv2T_kernel_val<int, int, __nv_bfloat16, __nv_bfloat16, float>", "bf16"),
        ("fmha_cutlassF_f32_aligned_64x64_rf_sm80", "fp32"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3", None),
        ("triton_tem_fused_mm_3", None),
        ("void at::native::im2col_kernel<int>", None),
    ],
)
def test_kernel_dtype(name, dtype):
    assert kernel_dtype(name) == dtype


@pytest.mark.parametrize(
    "name",
    [
        "triton_poi_fused_convolution_relu_3",
        "triton_red_fused_native_group_norm_convolution_0",
        "void cudnn::ops::convertTensor_kernel<float, __half>",
        "void cudnn::ops::nchwToNhwcKernel<float, float, float>",
        "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>>",
    ],
)
def test_kernels_that_only_move_or_fuse_are_no_compute(kit, name):
    assert compute_kernels(kit.trace(kernels=[name])) == []


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("sm80_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc", "implicit GEMM"),
        ("void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816dgrad_optimized_bf16>", "implicit GEMM"),
        ("ampere_scudnn_128x64_relu_medium_nn_v1", "implicit GEMM"),
        ("void precomputed_convolve_sgemm<float, 1024>", "implicit GEMM"),
        ("void explicit_convolve_sgemm<float, int>", "explicit GEMM"),
        ("cudnn_infer_ampere_scudnn_winograd_128x128_ldg1_ldg4_relu_tile148t_nt_v0", "Winograd"),
        ("void fft2d_r2c_32x32<float, false, 1u, false>", "FFT"),
        ("void cudnn::cnn::conv2d_grouped_direct_kernel<false, float>", "direct convolution"),
        ("void cudnn::cnn::dgrad2d_grouped_direct_kernel<false, float>", "direct convolution"),
        ("nvjet_tst_128x64_64x8_2x1_v_bz_TNT", "nvjet matrix product"),
        ("ampere_sgemm_128x64_tn", "matrix product"),
        ("void pytorch_flash::flash_fwd_kernel<...>", "attention"),
        ("triton_tem_fused_convolution_3", "Triton template"),
    ],
)
def test_family(kit, name, found):
    assert family(name) == found
    assert compute_kernels(kit.trace(kernels=[name]))


def test_the_share_is_one_of_time_and_bounded_by_what_is_unknown(kit):
    trace = kit.trace(
        kernels=[("nvjet_tst_1", 60e-6), ("ampere_sgemm", 10e-6), ("triton_tem_fused_mm_0", 30e-6), ("copy", 1.0)]
    )
    share = share_in(trace, "bf16")
    assert (share.low, share.high) == (pytest.approx(0.6), pytest.approx(0.9))
    told = share_in(trace, "bf16", {"triton_tem_fused_mm_0": "bf16"})
    assert (told.low, told.high) == (pytest.approx(0.9), pytest.approx(0.9))
    assert share_in(trace, "fp16").low == 0


def test_without_compute_kernels_there_is_no_share(kit):
    assert share_in(kit.trace(kernels=["copy"]), "bf16") is None
    assert share_in(kit.trace(), "bf16") is None
    assert share_in(kit.trace(kernels=[("ampere_sgemm", 0.0)]), "fp32") is None
    assert share_in(kit.trace(kernels=["ampere_sgemm"]), "fp32") == Share(1, 1)


def test_the_kernels_with_most_time_are_named(kit):
    trace = kit.trace(kernels=[("a_gemm", 1e-6), ("b_gemm", 5e-6), ("void c_gemm" + "x" * 99, 3e-6), ("a_gemm", 1e-6)])
    assert top(trace) == f"most compute time: b_gemm 50%, c_gemm{'x' * 63}… 30%"
    assert top(kit.trace()) == ""


def test_the_algorithms_are_told_by_time(kit):
    trace = kit.trace(
        kernels=[
            ("sm80_xmma_fprop_implicit_gemm_1", 4e-6),
            ("sm80_xmma_fprop_implicit_gemm_2", 4e-6),
            ("winograd", 2e-6),
            ("void cudnn::ops::nchwToNhwcKernel<float>", 1e-6),
        ]
    )
    assert algorithms(trace) == (
        "compute time by algorithm: implicit GEMM 80%, Winograd 20%; reordering between NCHW and NHWC took another 10%"
    )


def test_no_kernel_shows_no_algorithm(kit):
    assert algorithms(kit.trace(kernels=["copy"])) == "no kernel shows which algorithms were used"
