"""The probe's numbers, checked where there is no TF32: on a CPU, and with TF32's rounding done by hand."""

from __future__ import annotations

import pytest
import torch

from gpubench.measure.trace import Trace
from gpubench.toggles import precision, tf32_probe
from gpubench.toggles.precision import PRECISION
from gpubench.toggles.tf32_probe import Probe, tf32_in_use


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
    assert tf32_in_use(torch.device("cpu")) == Probe(
        matmul=None, convolution=None, detail="the numeric TF32 probe failed: out of memory"
    )


@pytest.mark.parametrize(
    ("value", "matmul", "convolution", "kernels", "took_effect"),
    [
        ("fp32", False, False, ["ampere_sgemm_128x64_tn"], True),
        ("fp32", False, True, ["ampere_sgemm_128x64_tn"], False),  # torch's default: TF32 in cuDNN
        ("fp32", True, False, ["ampere_sgemm_128x64_tn"], False),
        ("fp32", False, False, ["sm80_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32"], False),
        ("fp32", False, False, ["ampere_fp16_s16816gemm_fp16_64x64_tn"], False),
        ("fp32", None, None, ["ampere_sgemm_128x64_tn"], None),
        ("tf32", True, True, [], True),
        ("tf32", True, False, ["sm80_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32"], True),
        ("tf32", True, False, [], False),
        ("tf32", False, True, [], False),
        ("tf32", None, None, [], None),
    ],
)
def test_what_a_gpus_probe_decides(kit, monkeypatch, value, matmul, convolution, kernels, took_effect):
    monkeypatch.setattr(precision, "tf32_in_use", lambda device: Probe(matmul, convolution, "probed"))
    subject = kit.prepare({"precision": value})
    subject.device = torch.device("cuda")
    subject.trace = Trace(operators=(), kernels=tuple(kernels), names=frozenset())
    assert PRECISION.evidence(subject, value).took_effect is took_effect
