"""The probe's numbers, checked where there is no TF32: on a CPU, and with TF32's rounding done by hand."""

from __future__ import annotations

import pytest
import torch

from gpubench.toggles import tf32_probe
from gpubench.toggles.numerics import precision
from gpubench.toggles.numerics.precision import PRECISION
from gpubench.toggles.tf32_probe import Tf32Probe, tf32_in_use

_TF32_KERNEL = "sm80_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32"


def test_fp32_arithmetic_is_not_taken_for_tf32():
    probe = tf32_in_use(torch.device("cpu"))
    assert (probe.matmul, probe.convolution) == (False, False)
    assert "TF32 above 3.1e-05" in probe.detail


def test_tf32s_rounding_is_seen(monkeypatch):
    # TF32 keeps 10 of fp32's 23 mantissa bits; here the inputs lose the other 13 before they are multiplied.
    full = torch.full

    def rounded(*arguments, **keywords) -> torch.Tensor:
        bits = full(*arguments, **keywords).view(torch.int32)
        return (((bits + (1 << 12)) >> 13) << 13).view(torch.float32)

    monkeypatch.setattr(torch, "full", rounded)
    probe = tf32_in_use(torch.device("cpu"))
    assert (probe.matmul, probe.convolution) == (True, True)


def test_a_probe_that_cannot_run_says_why(monkeypatch):
    def fail(_: torch.device) -> float:
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(tf32_probe, "_matmul_error", fail)
    assert tf32_in_use(torch.device("cpu")) == Tf32Probe(
        matmul=None, convolution=None, detail="the numeric TF32 probe failed: RuntimeError: out of memory"
    )


@pytest.mark.parametrize(
    ("value", "matmul", "convolution", "kernels", "took_effect"),
    [
        ("fp32", False, False, ["ampere_sgemm_128x64_tn"], True),
        ("fp32", False, False, [], True),
        ("fp32", False, True, ["ampere_sgemm_128x64_tn"], False),  # torch's default: TF32 in cuDNN
        ("fp32", True, False, ["ampere_sgemm_128x64_tn"], False),
        ("fp32", False, False, [_TF32_KERNEL], False),
        ("fp32", None, None, [_TF32_KERNEL], False),
        ("fp32", None, None, ["ampere_sgemm_128x64_tn"], None),
        ("tf32", True, True, [], True),
        ("tf32", True, True, ["ampere_sgemm_128x64_tn"], False),  # allowed, and yet nothing was
        ("tf32", True, True, ["ampere_sgemm_128x64_tn", _TF32_KERNEL], True),
        ("tf32", True, True, ["a_gemm"], True),
        ("tf32", True, False, [_TF32_KERNEL], True),
        ("tf32", True, False, [], False),
        ("tf32", False, True, [], False),
        ("tf32", None, None, [], None),
    ],
)
def test_what_a_gpus_probe_decides(kit, monkeypatch, value, matmul, convolution, kernels, took_effect):
    context = on_gpu(kit, monkeypatch, value, Tf32Probe(matmul, convolution, "probed"))
    context.trace = kit.trace(["aten::mm"], kernels)
    assert PRECISION.evidence(context, value).took_effect is took_effect


def on_gpu(kit, monkeypatch, value: str, probe: Tf32Probe):
    monkeypatch.setattr(precision, "tf32_in_use", lambda device: probe)
    context = kit.prepare({"precision": value})
    context.device = torch.device("cuda")
    return context


@pytest.mark.parametrize(("value", "tf32", "took_effect"), [("fp32", False, True), ("tf32", True, None)])
def test_a_step_that_computes_nothing_contradicts_the_baseline_only_if_tf32_is_on(
    kit, monkeypatch, value, tf32, took_effect
):
    context = on_gpu(kit, monkeypatch, value, Tf32Probe(tf32, tf32, "probed"))
    context.trace = kit.trace(["aten::relu"])
    proof = PRECISION.evidence(context, value)
    assert proof.took_effect is took_effect
    assert "the profiled step shows no convolution, matrix product or attention" in proof.detail


def test_fp32_in_a_cuda_graph_is_read_from_its_kernels(kit, monkeypatch):
    context = on_gpu(kit, monkeypatch, "fp32", Tf32Probe(False, False, "probed"))
    context.trace = kit.trace(["aten::mm"], ["ampere_fp16_s16816gemm_fp16_64x64_tn"], graph=True)
    proof = PRECISION.evidence(context, "fp32")
    assert proof.took_effect is False
    assert "1 of 1 GPU kernels that compute ran below fp32: fp16" in proof.detail


def test_a_default_dtype_of_the_workloads_own_is_not_what_is_probed(monkeypatch):
    torch.set_default_dtype(torch.float64)
    test_tf32s_rounding_is_seen(monkeypatch)
