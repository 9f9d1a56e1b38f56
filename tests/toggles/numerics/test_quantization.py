from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gpubench.measure.trace import Trace
from gpubench.toggles import evidence as read
from gpubench.toggles.numerics import quantization
from gpubench.toggles.numerics.precision import PRECISION
from gpubench.toggles.numerics.quantization import QUANTIZATION, TOLERANCE
from gpubench.toggles.printed import run_lines
from gpubench.toggles.toggle import Requirement, in_force
from gpubench.worker.fill import Filled

needs_torchao = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="needs torchao: pip install 'torchao>=0.18'"
)
IDLE = dataclasses.replace(QUANTIZATION, apply=in_force)
INFERENCE = [
    {"quantization": "int8-dynamic"},
    {"quantization": "int8-weight"},
    {"quantization": "int8-dynamic", "precision": "bf16-weights"},
    {"quantization": "int8-weight", "precision": "bf16-autocast"},
    {"quantization": "int4-weight", "precision": "bf16-weights"},
]


class Mlp(nn.Module):
    """Two linear layers and a small last one that int8 products cannot do; `[B, 4, 8, 8]` -> `[B, 3]`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(256, 64), nn.Linear(64, 64), nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(F.silu(self.second(F.silu(self.first(x.flatten(1))))))


class Plain(nn.Linear):
    """Differs from torch's own in how it is made alone."""

    def __init__(self, *sides: int) -> None:
        super().__init__(*sides)
        nn.init.normal_(self.weight, std=0.05)


class Scaled(nn.Linear):
    """Does more than torch's own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Mixed(Mlp):
    """Layers of classes of its own, and one whose weight is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Plain(256, 64), Scaled(64, 64)
        self.last = nn.utils.parametrizations.weight_norm(nn.Linear(64, 32))


class Dense(Mlp):
    """The same, by weights that it makes dense by itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        for layer in (self.first, self.second, self.last):
            weight = layer.weight.dequantize() if read.is_quantized_weight(layer.weight) else layer.weight
            x = F.linear(x, weight, layer.bias)
        return x


class Tied(Mlp):
    """One more product, with a weight of the model's own."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Parameter(torch.randn(3, 300))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) @ self.words


def shaped(trace: Trace) -> Trace:
    """`trace`, whose operators multiply by a weight of the model's first layer."""
    operators = tuple(dataclasses.replace(each, shapes=((2, 256), (256, 64))) for each in trace.operators)
    return dataclasses.replace(trace, operators=operators)


def output(context) -> torch.Tensor:
    with torch.no_grad():
        return context.model(context.batches[0][0]).float()


@needs_torchao
@pytest.mark.parametrize("configuration", INFERENCE)
def test_inference_runs_quantized_and_the_outputs_stay_right(kit, configuration):
    context = kit.run(configuration, kit.workload(Mlp))
    value = configuration["quantization"]
    proof = QUANTIZATION.evidence(context, value)
    assert proof.took_effect is True, proof
    expected = output(kit.run({}, kit.workload(Mlp)))
    if "autocast" not in str(configuration.get("precision")):
        assert float((output(context) - expected).norm() / expected.norm()) < TOLERANCE[value]
    if precision := configuration.get("precision"):
        beside = PRECISION.evidence(context, precision)
        assert beside.took_effect is True, beside


@needs_torchao
def test_the_share_of_the_products_is_told(kit):
    proof = QUANTIZATION.evidence(kit.run({"quantization": "int8-dynamic"}, kit.workload(Mlp)), "int8-dynamic")
    assert proof.detail == (
        "2 of 3 linear layers, 99% of their weights, are quantized (Int8Tensor); 2 of 3 products with their shapes, "
        "99% of the work, ran in aten::_int_mm (at least 80% required)"
    )


@needs_torchao
@pytest.mark.parametrize(
    ("value", "mode"), [("int8-dynamic", "inference"), ("int8-weight", "inference"), ("int8-qat", "training")]
)
def test_layers_that_do_more_than_torchs_own_are_left_out(kit, value, mode):
    context = kit.run({"quantization": value}, kit.workload(Mixed), mode=mode)
    kinds = [type(getattr(context.model, name)).__name__ for name in ("first", "second", "last")]
    assert kinds[1:] == ["Scaled", "ParametrizedLinear"]
    assert (kinds[0] == "FakeQuantizedLinear") or read.is_quantized_weight(context.model.first.weight)
    proof = QUANTIZATION.evidence(context, value)
    assert proof.took_effect is True, proof


@needs_torchao
def test_products_of_the_model_itself_are_left_alone(kit):
    proof = QUANTIZATION.evidence(kit.run({"quantization": "int8-dynamic"}, kit.workload(Tied)), "int8-dynamic")
    assert proof.took_effect is True
    assert "2 of 3 products with their shapes" in proof.detail


@needs_torchao
@pytest.mark.parametrize("configuration", INFERENCE)
def test_an_apply_that_does_nothing_is_caught(kit, configuration):
    context = kit.run(configuration, kit.workload(Mlp), replace={"quantization": IDLE})
    proof = QUANTIZATION.evidence(context, configuration["quantization"])
    assert proof.took_effect is False
    assert "0 of 3 linear layers, 0% of their weights, are quantized (at least 80% required)" in proof.detail


@needs_torchao
@pytest.mark.parametrize("value", ["int8-dynamic", "int4-weight"])
def test_quantized_weights_that_are_multiplied_densely_are_caught(kit, value):
    precision = {"int4-weight": "bf16-weights"}.get(value, "fp32")
    context = kit.prepare({"quantization": value, "precision": precision}, kit.workload(Mlp))
    context.trace = shaped(kit.trace(["aten::addmm", "aten::addmm", "aten::addmm"]))
    proof = QUANTIZATION.evidence(context, value)
    assert proof.took_effect is False
    assert "0 of 3 products with their shapes, 0% of the work, ran in an operator of quantized products" in proof.detail


@needs_torchao
def test_a_model_that_makes_its_weights_dense_is_caught(kit):
    proof = QUANTIZATION.evidence(kit.run({"quantization": "int8-dynamic"}, kit.workload(Dense)), "int8-dynamic")
    assert proof.took_effect is False
    assert "0 of 3 products" in proof.detail


@needs_torchao
def test_weights_that_no_operator_reads_are_caught(kit):
    context = kit.prepare({"quantization": "int8-weight"}, kit.workload(Mlp))
    context.trace = kit.trace(["aten::addmm"])
    proof = QUANTIZATION.evidence(context, "int8-weight")
    assert proof.took_effect is False
    assert proof.detail.endswith("no operator of the step read an int8 weight")


@needs_torchao
@pytest.mark.parametrize("value", ["int8-dynamic", "int8-weight"])
def test_without_a_trace_nothing_is_claimed(kit, value):
    context = kit.prepare({"quantization": value}, kit.workload(Mlp))
    context.trace_error = "no CUPTI"
    proof = QUANTIZATION.evidence(context, value)
    assert proof.took_effect is None
    assert proof.detail == "the step could not be profiled: no CUPTI"


@needs_torchao
def test_training_rounds_to_int8(kit):
    context = kit.run({"quantization": "int8-qat"}, kit.workload(Mlp), mode="training")
    proof = QUANTIZATION.evidence(context, "int8-qat")
    assert proof.took_effect is True, proof
    assert "6 of 6 fake quantizers" in proof.detail
    weight = context.model.first.weight
    assert weight.requires_grad
    assert weight.grad is not None
    assert any(
        each is weight for optimizer in context.optimizers.values() for each in optimizer.param_groups[0]["params"]
    )


@needs_torchao
def test_training_without_rounding_is_caught(kit):
    context = kit.run({"quantization": "int8-qat"}, kit.workload(Mlp), mode="training", replace={"quantization": IDLE})
    assert QUANTIZATION.evidence(context, "int8-qat").took_effect is False
    context = kit.prepare({"quantization": "int8-qat"}, kit.workload(Mlp), mode="training")
    for module in context.model.modules():
        if type(module).__name__ == "IntxFakeQuantizer":
            module.enabled = False
    kit.step(context)
    kit.trace_again(context)
    proof = QUANTIZATION.evidence(context, "int8-qat")
    assert proof.took_effect is False
    assert "0 of 6 fake quantizers" in proof.detail


@needs_torchao
@pytest.mark.slow
@pytest.mark.parametrize("configuration", INFERENCE)
def test_compiled_code_shows_it_too(kit, configuration):
    context = kit.run({**configuration, "compile": "default"}, kit.workload(Mlp))
    proof = QUANTIZATION.evidence(context, configuration["quantization"])
    assert proof.took_effect is True, proof
    if precision := configuration.get("precision"):
        beside = PRECISION.evidence(context, precision)
        assert beside.took_effect is True, beside


@needs_torchao
@pytest.mark.slow
def test_compiled_training_rounds_to_int8(kit):
    context = kit.run({"quantization": "int8-qat", "compile": "default"}, kit.workload(Mlp), mode="training")
    proof = QUANTIZATION.evidence(context, "int8-qat")
    assert proof.took_effect is True, proof


def test_the_baseline_holds_for_any_model(kit):
    assert QUANTIZATION.evidence(kit.run({"quantization": "none"}, kit.workload(Mlp)), "none").took_effect is True
    assert QUANTIZATION.evidence(kit.run({"quantization": "none"}, kit.workload(nn.ReLU)), "none").took_effect is True


@needs_torchao
def test_a_model_that_is_quantized_as_built_has_the_baseline(kit):
    context = kit.run({"quantization": "int8-dynamic"}, kit.workload(Mlp))
    proof = QUANTIZATION.evidence(context, "none")
    assert proof.took_effect is True
    assert proof.detail.endswith("by the model itself")


@needs_torchao
@pytest.mark.parametrize("value", ["int8-dynamic", "int8-weight", "int4-weight"])
def test_weights_that_were_filled_get_their_own_values_back(kit, value):
    def build() -> nn.Module:
        model = Mlp()
        nn.init.zeros_(model.second.weight)
        return model

    work = kit.workload(build)
    context = kit.prepare({}, work)
    filled = Filled(context.model, seed=0)
    context.configuration["quantization"] = value
    QUANTIZATION.apply(context, value)
    place = context.model.second.weight
    assert float(place.dequantize().abs().max() if value != "int4-weight" else 1.0) > 0.01
    filled.restore(context.stores)
    assert context.model.second.weight is place
    torch.testing.assert_close(output(context), output(kit.prepare({}, work)), rtol=0.2, atol=0.05)
    with torch.no_grad():
        assert float((context.model.second(torch.ones(1, 64)) - context.model.second.bias).abs().max()) < 1e-4


@needs_torchao
def test_the_printed_lines_quantize(kit):
    for value in ("int8-dynamic", "int8-weight", "int4-weight", "int8-qat"):
        model = Mlp().to(torch.bfloat16) if value == "int4-weight" else Mlp()
        run_lines(QUANTIZATION.usage(value, kit.scope(modules={"Linear": 3})), model=model)
        kinds = {type(model.first).__name__, type(model.first.weight).__name__}
        assert kinds & {"Int8Tensor", "Int4OpaqueTensor", "FakeQuantizedLinear"}, value


@needs_torchao
def test_a_layer_that_is_kept_in_fp32_is_left_out(kit):
    context = kit.run(
        {"quantization": "int8-dynamic", "precision": "bf16-weights", "keep_fp32": "second"}, kit.workload(Mlp)
    )
    assert not read.is_quantized_weight(context.model.second.weight)
    proof = QUANTIZATION.evidence(context, "int8-dynamic")
    assert proof.took_effect is True, proof
    assert "1 of 2 linear layers" in proof.detail


@needs_torchao
@pytest.mark.parametrize(
    ("value", "operators", "kernels", "graph", "took_effect"),
    [
        ("int8-dynamic", ["aten::_int_mm", "aten::_int_mm", "aten::addmm"], [], False, False),
        ("int8-dynamic", ["aten::_int_mm"] * 8 + ["aten::addmm"], [], False, True),
        ("int8-dynamic", ["triton_tem_fused__int_mm_mul_0"], [], False, True),
        ("int8-dynamic", ["triton_tem_fused_addmm_0", "aten::_int_mm"], [], False, False),
        ("int8-dynamic", [], ["cutlass_80_tensorop_i16832gemm_s8_128x128"], True, True),
        ("int8-dynamic", [], ["nvjet_tst_128x64"], True, None),
        ("int4-weight", ["aten::_weight_int4pack_mm"], [], False, True),
        ("fp8", ["aten::_scaled_mm"], [], False, True),
        ("fp8", ["aten::_scaled_mm", "aten::mm"], [], False, False),
        ("fp8", [], ["triton_tem_fused__scaled_mm_0"], True, True),
    ],
)
def test_on_a_gpu_the_operators_decide_and_kernels_behind_a_graph(kit, value, operators, kernels, graph, took_effect):
    context = kit.prepare({"quantization": "int8-dynamic"}, kit.workload(Mlp))
    context.device = torch.device("cuda")
    context.trace = shaped(kit.trace(operators, kernels, graph=graph))
    proof = QUANTIZATION.evidence(context, value)
    assert proof.took_effect is took_effect, proof


@needs_torchao
def test_quantized_products_do_not_speak_against_the_precision_around_them(kit):
    context = kit.prepare({"precision": "bf16-weights", "quantization": "int8-dynamic"}, kit.workload(Mlp))
    context.trace = kit.trace([("aten::_int_mm", "signed char"), ("aten::_int_mm", "signed char")])
    proof = PRECISION.evidence(context, "bf16-weights")
    assert proof.took_effect is True, proof
    assert "6 of 6 weights are bf16" in proof.detail
    context.trace = kit.trace([("aten::_int_mm", "signed char"), ("aten::addmm", "float")])
    assert PRECISION.evidence(context, "bf16-weights").took_effect is False
    context = kit.prepare({"quantization": "int8-dynamic"}, kit.workload(Mlp))
    context.trace = kit.trace([("aten::_int_mm", "signed char")])
    assert PRECISION.evidence(context, "bf16-weights").took_effect is False


@needs_torchao
def test_packed_products_are_counted(kit):
    context = kit.run({"quantization": "int4-weight", "precision": "bf16-weights"}, kit.workload(Mlp))
    packed = [each for each in context.trace.operators if "int4pack" in each.name]
    assert [each.flops for each in packed] == [2 * 2 * 256 * 64, 2 * 2 * 64 * 64]


def test_what_cannot_run_has_its_sentence(kit, monkeypatch):
    versions = {"torchao": "0.18.0"}
    monkeypatch.setattr(quantization.importlib.metadata, "version", versions.__getitem__)
    linear = {"modules": {"Linear": 3}}
    bf16 = {"precision": "bf16-weights"}
    unmet = QUANTIZATION.unmet
    assert unmet(kit.scope(**linear), "int8-dynamic") is None
    assert unmet(kit.scope(**linear), "fp8") == (
        "needs a CUDA device, this is A CPU; fp8 products need tensor cores of Ada, Hopper or newer"
    )
    assert unmet(kit.scope(kit.AMPERE, **linear), "fp8").startswith("needs compute capability 8.9, NVIDIA A100 has 8.0")
    assert unmet(kit.scope(kit.TURING, **linear), "int4-weight") == "needs compute capability 8.0, NVIDIA T4 has 7.5"
    assert unmet(kit.scope(kit.AMPERE, **linear), "int4-weight", bf16) is None
    assert unmet(kit.scope(**linear), "int4-weight", {"precision": "fp32"}) == (
        "needs precision=bf16-weights or as-built"
    )
    assert unmet(kit.scope(**linear), "int4-weight", {"precision": "as-built"}).startswith("needs weights in bf16")
    own = kit.scope(**linear, dtypes=["bf16"])
    assert unmet(own, "int4-weight", {"precision": "as-built"}) is None
    assert unmet(kit.scope(**linear), "int8-qat") == "is for training only"
    assert unmet(kit.scope(**linear, mode="training"), "int8-weight") == "is for inference only"
    assert unmet(kit.scope(**linear, mode="training"), "int8-qat") is None
    assert "which autocast does not cast" in unmet(kit.scope(**linear), "int8-dynamic", {"precision": "bf16-autocast"})
    versions["torchao"] = "0.13.0+cpu"
    assert unmet(kit.scope(**linear), "int8-weight").startswith("needs torchao 0.18, this is 0.13.0+cpu: pip install")


def test_without_torchao_each_value_is_skipped_and_the_baseline_runs(kit, monkeypatch):
    def missing(_: str) -> str:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(quantization.importlib.metadata, "version", missing)
    scope = kit.scope(modules={"Linear": 3})
    assert QUANTIZATION.unmet(scope, "int8-weight") == (
        "needs torchao, which is not installed: pip install 'gpubench-torch[quantization]' (or 'torchao>=0.18')"
    )
    for value in QUANTIZATION.values:
        checks = QUANTIZATION.requires.get(value, Requirement()).check is not None
        assert checks == (value != "none")


def test_models_without_linear_layers_are_left_out(kit):
    assert QUANTIZATION.applies(kit.scope(modules={"Linear": 1})) is None
    assert QUANTIZATION.applies(kit.scope(modules={"MyLinear": 1})) is None
    assert QUANTIZATION.applies(kit.scope(modules={"NonDynamicallyQuantizableLinear": 1})) is not None
    assert QUANTIZATION.applies(kit.scope(modules={"Conv2d": 4})) == (
        "workload net has no torch.nn.Linear layer, and torchao leaves convolutions as they are"
    )
