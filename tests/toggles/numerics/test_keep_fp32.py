from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from gpubench.errors import GpubenchError
from gpubench.toggles import parse_value
from gpubench.toggles.numerics import keep_fp32
from gpubench.toggles.numerics.keep_fp32 import KEEP_FP32
from gpubench.toggles.numerics.precision import PRECISION
from gpubench.toggles.printed import run_lines
from gpubench.toggles.toggle import in_force

PARTS = ["body", "body.*", "head"]
MODULES = {"Conv2d": 2, "GroupNorm": 1, "Linear": 1, "SiLU": 1}
IDLE = dataclasses.replace(KEEP_FP32, apply=in_force)
VALUES = ["norms", "first-last", "head", "GroupNorm+body.3", "body.*", "Conv2d"]
LOWER = ["bf16-weights", "bf16-autocast"]


def dtypes(model: nn.Module) -> dict[str, torch.dtype]:
    return {name: weight.dtype for name, weight in model.named_parameters() if name.endswith("weight")}


@pytest.mark.parametrize("precision", LOWER)
@pytest.mark.parametrize("value", VALUES)
def test_the_chosen_layers_compute_in_fp32(kit, value, precision):
    context = kit.run({"precision": precision, "keep_fp32": value})
    proof = KEEP_FP32.evidence(context, value)
    assert proof.took_effect is True, proof
    assert "fp32" in proof.detail
    assert "bf16" not in proof.detail


def test_the_others_stay_in_the_precision(kit):
    context = kit.run({"precision": "bf16-weights", "keep_fp32": "first-last"})
    fp32, bf16 = torch.float32, torch.bfloat16
    assert dtypes(context.model) == {
        "body.0.weight": fp32, "body.1.weight": bf16, "body.3.weight": bf16, "head.weight": fp32,
    }  # fmt: skip
    with torch.no_grad():
        assert context.model(context.batches[0][0]).dtype is bf16  # cast back
    # Two of three products are kept, and the precision is judged by the third.
    proof = PRECISION.evidence(context, "bf16-weights")
    assert proof.took_effect is True, proof
    assert "1 of 1 convolutions" in proof.detail


def test_a_precision_that_reached_nothing_is_caught_beside_kept_layers(kit):
    idle = dataclasses.replace(PRECISION, apply=in_force)
    context = kit.run({"precision": "bf16-weights", "keep_fp32": "head"}, replace={"precision": idle})
    assert PRECISION.evidence(context, "bf16-weights").took_effect is False


@pytest.mark.parametrize("precision", LOWER)
@pytest.mark.parametrize("value", VALUES)
def test_an_apply_that_does_nothing_is_caught(kit, value, precision):
    context = kit.run({"precision": precision, "keep_fp32": value}, replace={"keep_fp32": IDLE})
    proof = KEEP_FP32.evidence(context, value)
    assert proof.took_effect is False
    assert proof.detail.startswith("0 of ")


def test_a_layer_that_computes_in_fp32_by_itself_is_no_proof(kit):
    class Careful(kit.Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(self.spare(x.float()))

        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.LayerNorm(8)

    work = kit.workload(Careful)
    context = kit.run({"precision": "bf16-autocast", "keep_fp32": "spare"}, work, replace={"keep_fp32": IDLE})
    proof = KEEP_FP32.evidence(context, "spare")
    assert proof.took_effect is False
    assert "operators: 1 in fp32" in proof.detail


def test_layers_that_are_cast_to_another_dtype_are_caught(kit, monkeypatch):
    wrong = keep_fp32._KEEP.replace("torch.float32)\n", "torch.bfloat16)\n").replace(".float()", ".bfloat16()")
    monkeypatch.setattr(keep_fp32, "_KEEP", wrong)
    proof = KEEP_FP32.evidence(kit.run({"precision": "bf16-weights", "keep_fp32": "head"}), "head")
    assert proof.took_effect is False
    assert "in bf16" in proof.detail


def test_layers_that_the_step_does_not_call_are_caught(kit):
    class Unused(kit.Net):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.LayerNorm(4)

    proof = KEEP_FP32.evidence(
        kit.run({"precision": "bf16-weights", "keep_fp32": "spare"}, kit.workload(Unused)), "spare"
    )
    assert proof.took_effect is False
    assert proof.detail == "none of 1 chosen layer was called in the step"


@pytest.mark.parametrize("precision", LOWER)
def test_training_goes_through_the_casts(kit, precision):
    context = kit.run({"precision": precision, "keep_fp32": "GroupNorm+head"}, mode="training")
    proof = KEEP_FP32.evidence(context, "GroupNorm+head")
    assert proof.took_effect is True, proof
    assert all(weight.grad is not None for weight in context.model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("precision", LOWER)
def test_compiled_code_keeps_them_too(kit, precision):
    context = kit.run({"precision": precision, "keep_fp32": "GroupNorm+head", "compile": "default"})
    proof = KEEP_FP32.evidence(context, "GroupNorm+head")
    assert proof.took_effect is True, proof
    beside = PRECISION.evidence(context, precision)
    assert beside.took_effect is True, beside


def test_watching_leaves_nothing_behind(kit):
    context = kit.run({"precision": "bf16-weights", "keep_fp32": "head"})
    KEEP_FP32.evidence(context, "head")
    assert not context.model.head._forward_hooks
    assert not context.model.head._forward_pre_hooks


def test_a_step_that_fails_leaves_it_open(kit):
    context = kit.run({"precision": "bf16-weights", "keep_fp32": "head"})
    context.step.forward = lambda _: 1 / 0
    proof = KEEP_FP32.evidence(context, "head")
    assert proof.took_effect is None
    assert proof.detail == "one more step, to watch the layers, failed: ZeroDivisionError: division by zero"


def test_embeddings_give_what_the_weights_around_them_take(kit):
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(7, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.words(x.flatten(1).long().clamp(0, 6))).mean(1)

    context = kit.run({"precision": "bf16-weights", "keep_fp32": "words"}, kit.workload(Words))
    assert KEEP_FP32.evidence(context, "words").took_effect is True
    context = kit.prepare({"precision": "bf16-weights", "keep_fp32": "first-last"}, kit.workload(Words))
    assert context.kept == [context.model.head]  # which is first and last: a table multiplies nothing


def test_the_printed_lines_keep_them(kit):
    model = kit.Net().to(torch.bfloat16)
    run_lines(KEEP_FP32.usage("body.1+head", kit.scope()), model=model, device=torch.device("cpu"))
    assert {name for name, dtype in dtypes(model).items() if dtype is torch.float32} == {"body.1.weight", "head.weight"}
    assert model(torch.ones(1, 4, 8, 8, dtype=torch.bfloat16)).dtype is torch.bfloat16


def test_names_are_parsed(kit):
    scope = kit.scope(parts=PARTS, modules=MODULES)
    for text in ("none", "norms", "first-last", "head", "body.3", "body.*", "GroupNorm+head"):
        assert parse_value(KEEP_FP32, text, scope) == text
    assert parse_value(KEEP_FP32, "anything.at.all") == "anything.at.all"  # where the model is not known
    assert parse_value(KEEP_FP32, "anything", kit.scope()) == "anything"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("haed", "keep_fp32=haed is not allowed: it names 'haed', which the model does not have (did you mean head?)."),
        ("norm", "which the model does not have (did you mean norms?)."),
        ("head+GroupNrom", "it names 'GroupNrom', which the model does not have (did you mean GroupNorm?)."),
        ("zzz", "its layers are of Conv2d, GroupNorm, Linear, SiLU"),
        ("first+last+", "Unknown value of toggle keep_fp32 'first+last+'"),
        ("first-lst", "Unknown value of toggle keep_fp32 'first-lst'"),
    ],
)
def test_an_unknown_name_is_an_error_before_anything_is_measured(kit, text, message):
    with pytest.raises(GpubenchError) as error:
        parse_value(KEEP_FP32, text, kit.scope(parts=PARTS, modules=MODULES))
    assert message in error.value.message
    assert "names of modules or classes of layers, joined by +" in error.value.hint


def test_a_name_that_only_the_model_can_tell_fails_the_row(kit):
    with pytest.raises(ValueError, match=r"keep_fp32=body.9 finds no body.9 in the model"):
        kit.prepare({"precision": "bf16-weights", "keep_fp32": "body.9"})
    with pytest.raises(ValueError, match=r"keep_fp32=norms finds no norms in the model"):
        kit.prepare({"precision": "bf16-weights", "keep_fp32": "norms"}, kit.workload(nn.ReLU))


def test_what_cannot_run_has_its_sentence(kit):
    scope = kit.scope(parts=PARTS, modules=MODULES)
    assert KEEP_FP32.unmet(scope, "head", {"precision": "fp32"}) == (
        "does nothing beside precision=fp32; only none is allowed there"
    )
    assert KEEP_FP32.unmet(scope, "head", {"precision": "bf16-weights"}) is None
    assert KEEP_FP32.unmet(kit.scope(modules={"Linear": 2}), "norms") == "finds no normalization layer among Linear"


def test_the_baseline_holds(kit):
    assert KEEP_FP32.evidence(kit.run({"keep_fp32": "none"}), "none").took_effect is True
