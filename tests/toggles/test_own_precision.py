"""A workload's own precision is a baseline under its own name, and every other value starts from plain fp32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gpubench.measure.quality import FP32_TOLERANCE
from gpubench.search.space import Builder
from gpubench.toggles import usage
from gpubench.toggles.numerics.precision import PRECISION, TOLERANCE
from gpubench.toggles.toggle import Scope

BF16, CONV_TF32 = "torch.backends.mkldnn.matmul.fp32_precision", "torch.backends.cudnn.conv.fp32_precision"


class OwnAutocast(nn.Module):
    """Its forward pass runs under autocast, by a region or by a decorator."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.first, self.second, self.dtype = nn.Linear(8, 8), nn.Linear(8, 3), dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", self.dtype):
            return self.rest(self.first(x))

    @torch.autocast("cpu", torch.bfloat16)
    def rest(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(x)


class Casting(nn.Module):
    """Computes in bfloat16 whatever the dtype of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x.bfloat16(), self.layer.weight.bfloat16()).float()


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))


def in_half() -> nn.Module:
    return plain().bfloat16()


def by_default() -> nn.Module:
    torch.set_default_dtype(torch.float64)
    return plain()


def process_autocast() -> nn.Module:
    torch.set_autocast_enabled("cpu", True)
    return plain()


def precise_settings() -> nn.Module:
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    return plain()


def rows(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 8, generator=generator), torch.randint(0, 3, (n,), generator=generator)


def half_rows(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    x, label = rows(n, generator)
    return x.bfloat16(), label


OWN: dict[str, tuple[Callable[[], nn.Module], Any, str]] = {
    "bf16": (in_half, half_rows, "as built: bf16"),
    "autocast": (OwnAutocast, rows, "as built: bf16"),
    "default dtype": (by_default, rows, "as built: fp64"),
    "autocast of the process": (process_autocast, rows, "as built: bf16"),
    "settings": (precise_settings, rows, "as built: fp32, mkldnn.matmul in bf16"),
    "casting": (Casting, rows, "as built: bf16"),
    "plain": (plain, rows, "as built: fp32"),
}


@pytest.fixture(autouse=True)
def no_autocast_afterwards() -> Any:
    yield
    torch.set_autocast_enabled("cpu", False)


@pytest.mark.parametrize("name", OWN)
def test_the_baseline_runs_as_built_and_has_the_name_of_what_ran(kit, name):
    build, inputs, expected = OWN[name]
    context = kit.run({"precision": "as-built"}, kit.workload(build, inputs=inputs))
    proof = PRECISION.evidence(context, "as-built")
    assert (proof.took_effect, proof.name) == (True, expected), proof


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("name", [name for name in OWN if name != "casting"])
def test_fp32_is_fp32_whatever_was_built(kit, name, mode):
    build, inputs, _ = OWN[name]
    context = kit.run({"precision": "fp32"}, kit.workload(build, inputs=inputs), mode=mode)
    proof = PRECISION.evidence(context, "fp32")
    assert proof.took_effect is True, proof
    assert PRECISION.unfit(context) is None
    assert {part.dtype for part in context.model.parameters()} == {torch.float32}
    assert context.batches[0][1].dtype == torch.int64


@pytest.mark.parametrize("name", ["bf16", "autocast", "default dtype", "settings"])
@pytest.mark.parametrize("value", ["bf16-autocast", "fp16-autocast", "bf16-weights"])
def test_other_values_start_from_fp32(kit, name, value):
    build, inputs, _ = OWN[name]
    context = kit.run({"precision": value}, kit.workload(build, inputs=inputs))
    proof = PRECISION.evidence(context, value)
    assert proof.took_effect is True, proof
    stored = {part.dtype for part in context.model.parameters()}
    assert stored == {torch.bfloat16 if value == "bf16-weights" else torch.float32}


class Doubling(torch.autograd.Function):
    """Says whether autocast is on in its backward pass, which torch restores."""

    seen: ClassVar[list[bool]] = []

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, gradient):
        Doubling.seen.append(torch.is_autocast_enabled("cpu"))
        return 2 * gradient


class Checkpointed(nn.Module):
    """Computes its layers once more in the backward pass, each under autocast of its own."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.layers, self.reentrant = nn.ModuleList([OwnAutocast(), nn.Linear(3, 3)]), reentrant
        self.seen: list[torch.dtype] = []

    def once(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        out = layer(x)
        self.seen.append(out.dtype)
        return out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = checkpoint(self.once, layer, x.requires_grad_(), use_reentrant=self.reentrant)
        return Doubling.apply(x)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("value", ["fp32", "bf16-autocast", "fp16-autocast"])
def test_autocast_that_torch_restores_in_the_backward_pass_is_kept(kit, value, reentrant):
    Doubling.seen.clear()
    context = kit.run({"precision": value}, kit.workload(lambda: Checkpointed(reentrant), inputs=rows), mode="training")
    assert PRECISION.evidence(context, value).took_effect is True
    expected = {"fp32": torch.float32, "bf16-autocast": torch.bfloat16, "fp16-autocast": torch.float16}[value]
    assert len(context.model.seen) >= 4
    assert set(context.model.seen) == {expected}
    assert set(Doubling.seen) == {value != "fp32"}


def test_autocast_of_its_own_is_off_in_compiled_code_too(kit):
    context = kit.run({"precision": "fp32", "compile": "default"}, kit.workload(OwnAutocast, inputs=rows))
    assert PRECISION.evidence(context, "fp32").took_effect is True


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (Casting, "1 of 1 convolutions, matrix products and attentions ran below fp32: bf16"),
        (precise_settings, "but torch.backends.mkldnn.matmul.fp32_precision is bf16"),
    ],
)
def test_a_step_that_computes_in_less_is_no_reference(kit, build, why):
    context = kit.run({"precision": "as-built"}, kit.workload(build, inputs=rows))
    assert why in PRECISION.unfit(context)
    assert PRECISION.evidence(context, "fp32").took_effect is False


def test_a_step_that_was_not_profiled_is_no_reference(kit):
    context = kit.prepare({"precision": "fp32"}, kit.workload(plain, inputs=rows))
    context.trace_error = "the profiler failed"
    assert "the profiler failed" in PRECISION.unfit(context)


def test_fp64_of_its_own_is_the_reference(kit):
    reference = PRECISION.reference(kit.scope(dtypes=["fp64"]))
    torch.set_float32_matmul_precision("medium")
    context = kit.run({"precision": reference}, kit.workload(by_default, inputs=rows))
    assert PRECISION.unfit(context) is None
    assert {part.dtype for part in context.model.parameters()} == {torch.float64}


@pytest.mark.parametrize(
    ("facts", "device", "baseline", "reference", "tolerance"),
    [
        ({}, "CPU", "fp32", "fp32", None),
        ({"dtypes": ["fp32"]}, "CPU", "fp32", "fp32", None),
        ({"dtypes": ["fp32"]}, "AMPERE", "torch-default", "fp32", TOLERANCE["torch-default"]),
        ({"dtypes": ["bf16"]}, "CPU", "as-built", "fp32", 0.06),
        ({"dtypes": ["bf16", "fp32"]}, "AMPERE", "as-built", "fp32", 0.06),
        ({"dtypes": ["fp32"], "autocast": ["fp16"]}, "AMPERE", "as-built", "fp32", 0.02),
        ({"dtypes": ["fp64"]}, "CPU", "as-built", "as-built-without-tf32", FP32_TOLERANCE),
        ({"dtypes": ["bf16", "fp64"]}, "CPU", "as-built", "fp32", 0.06),
        ({"dtypes": ["fp32"], "settings": {BF16: "bf16"}}, "CPU", "as-built", "fp32", 0.06),
        ({"dtypes": ["fp32"], "settings": {BF16: "bf16"}}, "AMPERE", "torch-default", "fp32", TOLERANCE["tf32"]),
        ({"dtypes": ["fp32"], "settings": {CONV_TF32: "fp32"}}, "AMPERE", "as-built", "fp32", 0.01),
        ({"dtypes": ["fp32"], "settings": {"torch.get_num_threads()": "8"}}, "CPU", "fp32", "fp32", None),
    ],
)
def test_baseline_reference_and_tolerance_by_what_is_built(kit, facts, device, baseline, reference, tolerance):
    scope: Scope = kit.scope(device=getattr(kit, device), **facts)
    assert PRECISION.baseline(scope) == baseline
    assert PRECISION.allowed_error(baseline, scope.workload) == tolerance
    builder = Builder(scope)
    assert (builder.defaults["precision"], builder.reference["precision"]) == (baseline, reference)
    assert set(PRECISION.offered(scope)) == set(PRECISION.values)
    assert (PRECISION.unmet(scope, "as-built") is None) == (baseline == "as-built")
    assert bool(PRECISION.remark(scope)) == (baseline == "as-built")


def test_what_the_report_says_of_it(kit):
    assert PRECISION.remark(kit.scope(dtypes=["fp32"], autocast=["bf16"])) == (
        "The workload's own code computes in bf16 and fp32 with autocast of its own, which is the baseline "
        "(precision=as-built). Outputs are compared with the same model in strict fp32, where it runs in that; every "
        "other precision starts from the model in fp32."
    )
    assert "in fp32, mkldnn.matmul in bf16, which" in PRECISION.remark(
        kit.scope(dtypes=["fp32"], settings={BF16: "bf16"})
    )
    assert "in its own precision without TF32" in PRECISION.remark(kit.scope(dtypes=["fp64"]))


def test_the_code_of_a_recommendation_first_takes_back_what_the_workload_sets(kit):
    own = kit.scope(dtypes=["bf16"], compiles_itself=True)
    chosen, baseline = (
        {"precision": "bf16-autocast", "compile": "off"},
        {"precision": "as-built", "compile": "as-built"},
    )
    lines = usage(chosen, own).splitlines()
    assert lines.index("model = model.to(torch.float32)") < lines.index(
        "autocast = torch.autocast(device.type, torch.bfloat16)"
    )
    assert "# take torch.compile of its own out of the code" in lines
    assert "model.float()" not in usage(chosen, kit.scope(dtypes=["fp32"]))
    assert usage(baseline, own) == ""


def test_converting_to_what_it_is_built_in_is_left_out(kit):
    why = "is what the workload's own code does, which precision=as-built measures"
    assert PRECISION.unmet(kit.scope(dtypes=["bf16"]), "bf16-weights") == why
    assert PRECISION.unmet(kit.scope(dtypes=["bf16"], autocast=["bf16"]), "bf16-weights") is None
    assert PRECISION.unmet(kit.scope(dtypes=["bf16"]), "bf16-autocast") is None


def test_torch_default_on_a_gpu_is_proven_by_its_flags(kit, monkeypatch):
    """No GPU here: what cuBLAS and cuDNN do is planted below the probe."""
    from gpubench.toggles.numerics import precision
    from gpubench.toggles.tf32_probe import Tf32Probe

    context = kit.prepare({"precision": "torch-default"})
    context.device, context.trace = torch.device("cuda"), kit.trace(["aten::convolution"], [("sgemm", 1.0)])

    def took_effect(matmul: bool | None, value: str = "torch-default") -> bool | None:
        monkeypatch.setattr(precision, "tf32_in_use", lambda device: Tf32Probe(matmul, True, "planted"))
        return PRECISION.evidence(context, value).took_effect

    assert took_effect(matmul=False) is True
    assert took_effect(matmul=True) is False
    assert took_effect(matmul=None) is None
    assert took_effect(matmul=False, value="fp32") is False  # cuDNN may use TF32
    torch.backends.cuda.matmul.allow_tf32 = True
    assert "torch.backends.cuda.matmul.fp32_precision is tf32" in PRECISION.evidence(context, "torch-default").detail
    assert took_effect(matmul=False) is False
