from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from gpubench.toggles.numerics.precision import PRECISION
from gpubench.toggles.toggle import EvidenceResult

DO_NOTHING = dataclasses.replace(PRECISION, apply=lambda context, value: None)
LOWER = ("bf16-autocast", "bf16-weights", "fp16-autocast", "fp16-weights")


@pytest.mark.parametrize("value", ["fp32", *LOWER])
def test_inference_runs_in_the_dtype(kit, value):
    context = kit.run({"precision": value})
    proof = PRECISION.evidence(context, value)
    assert proof.took_effect is True, proof
    assert "of 3 convolutions" in proof.detail


@pytest.mark.parametrize("value", ["fp32", "bf16-autocast", "bf16-weights", "fp16-autocast"])
def test_training_runs_in_the_dtype(kit, value):
    context = kit.run({"precision": value}, mode="training")
    proof = PRECISION.evidence(context, value)
    assert proof.took_effect is True, proof
    assert ("gradient scale" in proof.detail) == (value == "fp16-autocast")


@pytest.mark.parametrize("value", LOWER)
def test_an_apply_that_does_nothing_is_caught(kit, value):
    context = kit.run({"precision": value}, replace={"precision": DO_NOTHING})
    assert PRECISION.evidence(context, value) == EvidenceResult(
        took_effect=False,
        detail=f"0 of 3 convolutions, matrix products and attentions, 0% of their work, ran in {value[:4]} "
        "(at least 80% required)",
    )


@pytest.mark.parametrize("ran", LOWER)
def test_fp32_that_ran_lower_is_caught(kit, ran):
    context = kit.run({"precision": ran})
    proof = PRECISION.evidence(context, "fp32")
    assert proof.took_effect is False
    assert "3 of 3" in proof.detail
    assert ran[:4] in proof.detail


def test_one_lower_dtype_is_not_taken_for_the_other(kit):
    context = kit.run({"precision": "fp16-autocast"})
    assert PRECISION.evidence(context, "bf16-autocast").took_effect is False


class MostlyFenced(nn.Module):
    """A model that keeps two of its three layers out of autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers[0](x).float()
        with torch.autocast(x.device.type, enabled=False):
            return self.layers[2](self.layers[1](x))


def test_a_minority_in_the_dtype_is_not_enough(kit):
    context = kit.run({"precision": "bf16-autocast"}, kit.workload(MostlyFenced))
    proof = PRECISION.evidence(context, "bf16-autocast")
    assert proof.took_effect is False
    assert "1 of 3" in proof.detail


@pytest.mark.parametrize("value", ["fp32", "bf16-autocast"])
def test_compiled_code_can_be_read_too(kit, value):
    context = kit.run({"precision": value, "compile": "default"})
    proof = PRECISION.evidence(context, value)
    assert proof.took_effect is True, proof


def test_attention_counts(kit):
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.project(x)
            return nn.functional.scaled_dot_product_attention(x, x, x)

    context = kit.run({"precision": "bf16-autocast"}, kit.workload(Attention))
    detail = PRECISION.evidence(context, "bf16-autocast").detail
    assert "2 of 2 convolutions, matrix products and attentions" in detail
    assert detail.endswith("; attention ran in flash")


def test_a_model_without_arithmetic_to_read_is_unknown_and_fits_the_baseline(kit):
    context = kit.run({"precision": "fp32"}, kit.workload(nn.ReLU))
    nothing = "the profiled step shows no convolution, matrix product or attention"
    assert PRECISION.evidence(context, "bf16-autocast") == EvidenceResult(took_effect=None, detail=nothing)
    assert PRECISION.evidence(context, "fp32") == EvidenceResult(
        took_effect=True, detail=f"{nothing}, so nothing ran below fp32"
    )


@pytest.mark.parametrize(
    ("operators", "kernels", "took_effect", "words"),
    [
        # Two of three operators in bf16, but nearly all of the time; and the reverse.
        (["bf16", "bf16", "fp32"], [("nvjet_tst_1", 9e-6), ("ampere_sgemm", 1e-6)], True, "90% of the compute kernels"),
        (["bf16"] * 9 + ["fp32"], [("nvjet_tst_1", 5e-6), ("ampere_sgemm", 5e-6)], False, "50% of the compute kernels"),
        # Kernels that tell nothing leave it to the operators, and so does a profiler that saw no kernel.
        (["bf16"], [("some_gemm", 9e-6)], True, "100% in kernels of unknown dtype"),
        (["fp32"], [("some_gemm", 9e-6)], False, "0 of 1 convolutions"),
        (["bf16"], [], True, "no GPU kernel was recorded"),
        ([], [("nvjet_tst_1", 9e-6)], True, "most compute time: nvjet_tst_1 100%"),
        ([], ["some_copy"], None, "the profiled step shows no convolution"),
    ],
)
def test_on_a_gpu_the_time_in_the_dtype_decides(kit, operators, kernels, took_effect, words):
    context = kit.prepare({"precision": "bf16-weights"})
    context.device = torch.device("cuda")
    dtypes = {"bf16": "c10::BFloat16", "fp32": "float"}
    context.trace = kit.trace([("aten::mm", dtypes[each]) for each in operators], kernels)
    proof = PRECISION.evidence(context, "bf16-weights")
    assert proof.took_effect is took_effect, proof
    assert words in proof.detail


def test_a_triton_template_is_told_by_what_it_was_launched_with(kit):
    context = kit.prepare({"precision": "bf16-weights"})
    for dtype, took_effect in (("c10::BFloat16", True), ("float", False)):
        context.trace = kit.trace([("triton_tem_fused_mm_0", dtype)], ["triton_tem_fused_mm_0"])
        assert PRECISION.evidence(context, "bf16-weights").took_effect is took_effect


def test_operators_beside_a_cuda_graph_do_not_speak_for_it(kit):
    context = kit.prepare({"precision": "bf16-weights"})
    context.trace = kit.trace([("aten::mm", "c10::BFloat16")], ["triton_tem_fused_mm_0"], graph=True)
    proof = PRECISION.evidence(context, "bf16-weights")
    assert proof.took_effect is None
    assert "a CUDA graph hides its operators" in proof.detail


def test_without_a_trace_nothing_is_claimed(kit):
    context = kit.prepare({"precision": "bf16-autocast"})
    context.trace_error = "no CUPTI"
    assert PRECISION.evidence(context, "bf16-autocast") == EvidenceResult(
        took_effect=None, detail="the step could not be profiled: no CUPTI"
    )


def test_weights_convert_floating_tensors_only(kit):
    context = kit.prepare({"precision": "bf16-weights"})
    image, label = context.batches[0]
    assert {parameter.dtype for parameter in context.model.parameters()} == {torch.bfloat16}
    assert (image.dtype, label.dtype) == (torch.bfloat16, torch.int64)


@pytest.mark.parametrize("value", list(PRECISION.values))
def test_tf32_flags_follow_the_value(kit, value):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = value != "tf32"
    kit.prepare({"precision": value})
    expected = {"as-built": (True, True), "torch-default": (False, True), "tf32": (True, True)}
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    assert flags == expected.get(value, (False, False))


def test_what_a_device_cannot_do_has_its_sentence(kit):
    def unmet(value: str, **where) -> str | None:
        return PRECISION.unmet(kit.scope(**where), value)

    assert unmet("tf32") == ("needs a CUDA device, this is A CPU; TF32 needs tensor cores of Ampere or newer")
    assert unmet("tf32", device=kit.TURING) == (
        "needs compute capability 8.0, NVIDIA T4 has 7.5; TF32 needs tensor cores of Ampere or newer"
    )
    assert unmet("bf16-autocast", device=kit.TURING) == "needs compute capability 8.0, NVIDIA T4 has 7.5"
    assert unmet("fp16-autocast") == "needs float16 arithmetic in hardware, A CPU would emulate it"
    assert unmet("fp16-weights", device=kit.AMPERE, mode="training") == (
        "is for inference only; torch's gradient scaler cannot unscale fp16 gradients, "
        "and unscaled ones underflow; use fp16-autocast for training"
    )
    assert unmet("torch-default") == "needs a CUDA device, this is A CPU; elsewhere it is the same as fp32"
    for value in PRECISION.values:
        assert (unmet(value, device=kit.AMPERE) is None) == (value != "as-built")
    assert unmet("bf16-weights", mode="training") is None
    assert unmet("fp32") is None


def test_the_scaler_really_refuses_fp16_gradients():
    parameter = nn.Parameter(torch.ones(2, dtype=torch.float16))
    optimizer = torch.optim.AdamW([parameter])
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(parameter.sum()).backward()
    with pytest.raises(ValueError, match="unscale FP16 gradients"):
        scaler.unscale_(optimizer)


class Multiplied(nn.Module):
    """One operator that autocast intercepts under its own name: recorded before the cast and, inside that, after it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.weight, self.bias = name, nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.zeros(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.reshape(-1, 8)
        if self.name == "addmm":
            return torch.addmm(self.bias, x, self.weight)
        if self.name == "mm":
            return torch.mm(x, self.weight)
        x, weight = x.view(4, -1, 8), self.weight.expand(4, 8, 8)
        return torch.bmm(x, weight) if self.name == "bmm" else torch.baddbmm(self.bias.expand(4, 1, 8), x, weight)


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("name", ["mm", "addmm", "bmm", "baddbmm"])
def test_an_operator_that_autocast_calls_again_counts_once(kit, name, mode):
    work = kit.workload(lambda: Multiplied(name), loss=lambda model, batch: model(batch[0]).float().mean())
    proof = PRECISION.evidence(kit.run({"precision": "bf16-autocast"}, work, mode=mode), "bf16-autocast")
    assert proof.took_effect is True, proof
    count = 1 if mode == "inference" else 2  # of the inputs no gradient is asked
    assert f"{count} of {count} convolutions" in proof.detail


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_in_autocast(kit, layer):
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.flatten(0, 1))[0]

    proof = PRECISION.evidence(
        kit.run({"precision": "bf16-autocast"}, kit.workload(Recurrent, inputs=kit.images())), "bf16-autocast"
    )
    assert proof.took_effect is True, proof


def test_the_share_of_the_work_decides_and_not_the_number_of_operators(kit):
    def build() -> nn.Module:  # four vectors of the spectral norm's power iteration, in fp32, beside each convolution
        layers = [nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 3, padding=1)) for _ in range(3)]
        return nn.Sequential(nn.Conv2d(4, 8, 1), *layers)

    work = kit.workload(build, loss=lambda model, batch: model(batch[0]).mean())
    context = kit.run({"precision": "bf16-autocast"}, work, mode="training")
    proof = PRECISION.evidence(context, "bf16-autocast")
    assert proof.took_effect is True, proof
    assert not proof.detail.startswith("8 of 8")
    assert "100% of their work" in proof.detail or "99% of their work" in proof.detail


def test_without_records_of_the_gpu_operators_in_another_dtype_prove_nothing(kit):
    context = kit.prepare({"precision": "bf16-weights"})
    context.device = torch.device("cuda")
    context.trace = kit.trace([("aten::mm", "float")])  # a replayed CUDA graph would hide the others
    assert PRECISION.evidence(context, "bf16-weights").took_effect is None
    context.trace = kit.trace([("aten::mm", "c10::BFloat16")])
    assert PRECISION.evidence(context, "bf16-weights").took_effect is True


def test_attention_that_torch_computes_in_fp32_under_dropout_counts_by_its_work(kit):
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts, self.out = nn.Linear(64, 192), nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            query, key, value = self.parts(x).chunk(3, dim=-1)
            return self.out(nn.functional.scaled_dot_product_attention(query, key, value, dropout_p=0.1))

    def sequences(batch_size: int, generator: torch.Generator) -> tuple[torch.Tensor]:
        return (torch.randn(batch_size, 1, 8, 64, generator=generator),)

    work = kit.workload(Block, inputs=sequences, loss=lambda model, batch: model(batch[0]).float().mean())
    proof = PRECISION.evidence(kit.run({"precision": "bf16-autocast"}, work, mode="training"), "bf16-autocast")
    assert "attention ran in math" in proof.detail
    assert proof.took_effect is True, proof
    assert proof.detail.startswith("5 of 11 convolutions, matrix products and attentions, 9"), proof
