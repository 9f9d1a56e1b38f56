"""Quantized linear layers, and layers kept in fp32, on a real GPU, with planted faults."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from tests.gpu.test_toggles_gpu import CAPABILITY, HAS_GPU, collect_evidence

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_GPU, reason="needs an NVIDIA GPU: torch.cuda.is_available() is false here"),
]
needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs torchao")
ada = pytest.mark.skipif(HAS_GPU and CAPABILITY < (8, 9), reason="needs compute capability 8.9 for fp8")
ampere = pytest.mark.skipif(HAS_GPU and CAPABILITY < (8, 0), reason="needs compute capability 8.0 for bfloat16")

QUANTIZED = [
    {"quantization": "int8-dynamic", "precision": "fp32"},
    pytest.param({"quantization": "int8-dynamic", "precision": "bf16-weights"}, marks=ampere),
    {"quantization": "int8-weight", "precision": "fp32"},
    pytest.param({"quantization": "int4-weight", "precision": "bf16-weights"}, marks=ampere),
    pytest.param({"quantization": "fp8", "precision": "bf16-weights"}, marks=ada),
]


@needs_torchao
@pytest.mark.parametrize("compiled", ["off", "default", "reduce-overhead"])
@pytest.mark.parametrize("configuration", QUANTIZED)
def test_quantization(configuration, compiled):
    proofs = collect_evidence({**configuration, "compile": compiled}, "gpt")
    assert proofs["quantization"][0] is not False, proofs
    assert proofs["precision"][0] is not False, proofs
    if compiled != "reduce-overhead":  # behind a CUDA graph there are only the names of kernels to go by
        assert all(took_effect is True for took_effect, _ in proofs.values()), proofs


@needs_torchao
@pytest.mark.parametrize("configuration", QUANTIZED)
def test_quantization_that_was_not_applied_is_caught(configuration):
    took_effect, detail = collect_evidence(configuration, "gpt", faults={"quantization": None})["quantization"]
    assert took_effect is False, detail


@needs_torchao
@pytest.mark.parametrize("compiled", ["off", "default"])
def test_training_rounds_to_int8(compiled):
    proofs = collect_evidence({"quantization": "int8-qat", "compile": compiled}, "gpt", "training")
    assert proofs["quantization"][0] is True, proofs


@ampere
@pytest.mark.parametrize("compiled", ["off", "default", "reduce-overhead"])
@pytest.mark.parametrize("precision", ["bf16-weights", "bf16-autocast"])
@pytest.mark.parametrize("value", ["norms", "first-last", "Conv2d"])
def test_layers_kept_in_fp32(value, precision, compiled):
    configuration = {"precision": precision, "keep_fp32": value, "compile": compiled}
    took_effect, detail = collect_evidence(configuration, "resnet50")["keep_fp32"]
    assert took_effect is True, detail


@ampere
@pytest.mark.parametrize("precision", ["bf16-weights", "bf16-autocast"])
def test_layers_that_were_not_kept_are_caught(precision):
    configuration = {"precision": precision, "keep_fp32": "first-last"}
    took_effect, detail = collect_evidence(configuration, "resnet50", faults={"keep_fp32": None})["keep_fp32"]
    assert took_effect is False, detail


def test_values_near_the_end_of_fp16_are_seen():
    from gpubench.measure.value_range import watch

    model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.ReLU()).half().cuda()
    with torch.no_grad():
        model[0].weight.fill_(10_000)
        found = watch(model, lambda: model(torch.ones(1, 4, device="cuda", dtype=torch.half)))
    assert found is not None
    assert (found.largest_activation, found.near_overflow) == (40_000, 1.0)
