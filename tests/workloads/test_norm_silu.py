"""The fused norm gives what torch's two operators give, in every layout and with gradients, and is seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpubench.errors import GpubenchError
from gpubench.hardware.facts import Device
from gpubench.measure.trace import trace_step
from gpubench.toggles.own import declared, stand_in
from gpubench.toggles.toggle import Scope
from gpubench.worker.prepare import apply_toggles, build, make_batches
from gpubench.worker.step import Stepper
from gpubench.workloads import norms
from gpubench.workloads.catalog import TOGGLES
from gpubench.workloads.describe import describe
from gpubench.workloads.loader import load
from gpubench.workloads.norms import NORM_SILU, NormSilu, native, with_norm_silu

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
SHAPES = [(2, 8, 5, 7), (1, 64, 16, 16), (3, 12, 1, 1), (2, 6, 4, 3, 5), (2, 8, 9), (4, 8)]
reason = native.unavailable("cpu")
builds = pytest.mark.skipif(reason is not None, reason=str(reason))


@pytest.fixture(autouse=True)
def ready(request: pytest.FixtureRequest) -> None:
    """Builds the library in the user's cache, once."""
    if reason is None and "cold" not in request.fixturenames:
        native.prepare()


def drawn(shape: tuple[int, ...], dtype: torch.dtype, *, last: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """x whose mean is not zero, weight and bias."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * 2 + 3
    weight, bias = (torch.randn(shape[1], generator=generator, dtype=torch.float64) for _ in range(2))
    x = x.contiguous(memory_format=FORMATS[len(shape)]) if last else x
    return x.to(dtype), weight.to(dtype), bias.to(dtype)


def two(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    return F.silu(F.group_norm(x, groups, weight, bias, 1e-6))


def fused(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    return native.norm_silu(x, weight, bias, groups, 1e-6)


def with_gradients(function, *tensors: Tensor, groups: int) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    y = function(*leaves, groups)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(y.dtype)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), leaves)]


@builds
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_torchs_two_operators_with_gradients(shape: tuple[int, ...], last: bool, dtype: torch.dtype) -> None:
    if last and len(shape) not in FORMATS:
        pytest.skip("there is no such layout of that many dimensions")
    for groups in (1, 2, shape[1]):
        tensors = drawn(shape, dtype, last=last)
        if groups == shape[1] and tensors[0][0, 0].numel() == 1:
            continue  # one value a group, which torch's training refuses
        expected = with_gradients(two, *tensors, groups=groups)
        for got, one in zip(with_gradients(fused, *tensors, groups=groups), expected, strict=True):
            assert got.dtype == dtype
            scale = max(1.0, float(one.abs().max()))
            assert float((got - one).abs().max()) <= TOLERANCE[dtype] * scale, groups
        y = fused(*tensors, groups)
        assert y.stride() == tensors[0].stride()


@builds
@pytest.mark.parametrize("last", [False, True])
def test_the_gradient_is_that_of_finite_differences(last: bool) -> None:
    tensors = [tensor.requires_grad_() for tensor in drawn((2, 4, 3, 3), torch.float64, last=last)]
    assert torch.autograd.gradcheck(lambda x, w, b: fused(x, w, b, 2), tensors)


@builds
def test_many_pixels_with_a_large_mean_are_as_exact_as_few() -> None:
    """Sums of squares would lose all digits of a variance that is a hundred-thousandth of the mean's square."""
    x = torch.randn(1, 4, 257, 129, generator=torch.Generator().manual_seed(0)) + 300
    weight, bias = torch.ones(4), torch.zeros(4)
    exact = two(x.double(), weight.double(), bias.double(), 2)
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        # x itself has 300 * 2^-24 = 2e-5 of rounding; scale and shift are rounded to fp32 as torch's are.
        assert float((fused(given, weight, bias, 2) - exact).abs().max()) < 2e-4


@builds
@pytest.mark.parametrize("value", [-1e4, -100.0, -87.5, -1.0, 0.0, 1.0, 88.0, 1e4])
def test_silu_of_large_values(value: float) -> None:
    x, weight = torch.zeros(1, 2, 2, 2), torch.ones(2)
    got = fused(x, weight, torch.full((2,), value), 1)
    torch.testing.assert_close(got, F.silu(torch.full_like(x, value)), rtol=1e-6, atol=1e-30)


@builds
def test_what_is_no_number_stays_so() -> None:
    x, weight, bias = drawn((1, 4, 4, 4), torch.float32)
    x[0, 0, 1, 1] = float("nan")
    got = fused(x, weight, bias, 2)
    assert bool(got[:, :2].isnan().all()) and bool(got[:, 2:].isfinite().all())


@builds
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("weights", [torch.float32, None])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_fp32(dtype: torch.dtype, weights: torch.dtype | None, last: bool) -> None:
    """With weights in fp32, as autocast leaves them, or of half precision too."""
    x, weight, bias = (tensor.to(dtype) for tensor in drawn((2, 8, 20, 20), torch.float32, last=last))
    weight, bias = weight.to(weights or dtype), bias.to(weights or dtype)
    got = with_gradients(fused, x, weight, bias, groups=2)
    exact = with_gradients(two, x.double(), weight.double(), bias.double(), groups=2)
    assert (got[0].dtype, got[1].dtype, got[2].dtype) == (dtype, dtype, weights or dtype)
    unit = torch.finfo(dtype).eps
    assert float((got[0].double() - exact[0]).abs().max()) <= unit * float(exact[0].abs().max())
    for one, other in zip(got[1:], exact[1:], strict=True):
        assert float((one.double() - other).norm() / other.norm()) < 8 * unit


@builds
def test_inputs_with_gaps_and_empty_ones() -> None:
    x, weight, bias = drawn((2, 8, 6, 6), torch.float64)
    gaps = torch.stack((x, x), dim=-1)[..., 0][:, :, ::2]
    torch.testing.assert_close(fused(gaps, weight, bias, 4), two(gaps, weight, bias, 4), rtol=0, atol=1e-12)
    assert fused(x[:0], weight, bias, 4).shape == (0, 8, 6, 6)


@builds
def test_it_refuses_what_it_would_read_past_the_end_of() -> None:
    x, weight, bias = drawn((2, 6, 4, 4), torch.float32)
    for wrong in (
        (x, weight[:5], bias, 2),
        (x, weight, bias[:5], 2),
        (x, weight, bias, 4),
        (x[0, 0, 0], weight, bias, 1),
    ):
        with pytest.raises(RuntimeError, match="norm_silu takes"):
            fused(*wrong)


@builds
@pytest.mark.parametrize("last", [False, True])
def test_it_is_an_operator_that_compile_sees(last: bool) -> None:
    tensors = [tensor.requires_grad_() for tensor in drawn((2, 6, 4, 4), torch.float32, last=last)]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.gpubench.norm_silu.default, (*tensors, 2, 1e-6), test_utils=checks)
    torch._dynamo.reset()
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    expected = with_gradients(two, *tensors, groups=2)
    for got, one in zip(with_gradients(compiled, *tensors, groups=2), expected, strict=True):
        torch.testing.assert_close(got, one, rtol=1e-4, atol=1e-5)


@builds
def test_a_model_keeps_its_parameters_and_its_numbers() -> None:
    def made() -> nn.Sequential:
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.SiLU(), nn.GroupNorm(2, 8), nn.ReLU())
        return layers.requires_grad_(False)

    plain = made()
    assert with_norm_silu(plain, {"norm_silu": "torch"}) is plain
    assert not any(isinstance(module, NormSilu) for module in plain.modules())
    changed = with_norm_silu(made(), {"norm_silu": "fused"})
    assert [type(module) for module in changed] == [nn.Conv2d, NormSilu, nn.Identity, nn.GroupNorm, nn.ReLU]
    assert list(changed.state_dict()) == list(plain.state_dict())
    assert not any(parameter.requires_grad for parameter in changed.parameters())
    x = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(changed(x), plain(x), rtol=0, atol=1e-5)


@builds
@pytest.mark.parametrize(
    ("reference", "mode"),
    [("vae", "inference"), ("vae", "training"), pytest.param("diffusion", "training", marks=pytest.mark.slow)],
)
def test_the_toggle_proves_itself_and_an_idle_one_is_caught(reference: str, mode: str) -> None:
    case = load(reference, "tiny")
    results = {}
    assert TOGGLES[reference] == tuple(each.name for each in case.workload.toggles)
    for asked in ("torch", "fused"):
        configuration = {"norm_silu": asked, **({"optimizer": "for-loop"} if mode == "training" else {})}
        context = build(case, mode, torch.device("cpu"), configuration, 0)
        apply_toggles(context, make_batches(case, 1, 1, 0))
        stepper = Stepper(context)
        context.trace = trace_step(lambda stepper=stepper: stepper.run(0), cuda=False)
        results[asked] = stepper.output if mode == "inference" else stepper.loss
        proofs = {each: NORM_SILU.evidence(context, each).took_effect for each in NORM_SILU.values}
        assert proofs == {each: each == asked for each in NORM_SILU.values}
        left = [operator.name for operator in context.trace.operators].count("aten::native_group_norm")
        if mode == "inference":
            assert (left == 2) == (asked == "fused")  # the attentions' norms, in encoder and decoder, have no SiLU
    torch.testing.assert_close(results["fused"], results["torch"], rtol=1e-4, atol=1e-4)


@builds
def test_the_denoiser_and_the_decoder_of_diffusion_have_it_both() -> None:
    case = load("diffusion", "tiny")
    assert TOGGLES["diffusion"] == tuple(each.name for each in case.workload.toggles)
    parts = build(case, "inference", torch.device("cpu"), {"norm_silu": "fused"}, 0).model
    ways = {name: part.norm_silu for name, part in parts.named_modules() if hasattr(part, "norm_silu")}
    assert set(ways.values()) == {"fused"}
    residuals = sum(type(part).__name__ == "Residual" for part in parts.modules())
    assert len(ways) == residuals + 2  # and the last norms of U-Net and decoder
    assert {name.split(".")[0] for name in ways} == {"unet", "vae"}


def test_a_cuda_graph_shows_its_kernel_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpubench.measure.trace import Kernel, Trace

    case = load("vae", "tiny")
    context = build(case, "inference", torch.device("cpu"), {}, 0)
    for asked, kernel in (("torch", "elementwise"), ("fused", f"{norms.KERNEL}_0d1d")):
        for module in context.model.modules():
            if hasattr(module, "norm_silu"):
                module.norm_silu = asked
        context.trace = Trace(operators=(), kernels=(Kernel(kernel, 1e-6),), names=frozenset({"cudaGraphLaunch"}))
        assert {each: NORM_SILU.evidence(context, each).took_effect for each in NORM_SILU.values} == {
            each: each == asked for each in NORM_SILU.values
        }


@pytest.fixture
def cold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no compiler."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return tmp_path


def test_where_it_cannot_be_built_it_is_skipped_with_a_sentence(cold: Path) -> None:
    sentence = "the fused norm needs a C++ compiler, and there is no 'c++' on the PATH (CXX names another)"
    assert native.unavailable("cpu") == sentence
    with pytest.raises(GpubenchError, match=r"norm_silu=fused cannot run: the fused norm needs a C\+\+ compiler"):
        native.prepare()
    case = load("vae", "tiny")
    device = Device(kind="cpu", name="A CPU", cores=2)
    scope = Scope(device=device, workload=describe(case, "inference"), torch_version=(2, 13))
    there = stand_in(declared(NORM_SILU, scope))
    assert there.unmet(scope, "fused") == f"cannot be computed here: {sentence}"
    assert there.unmet(scope, "torch") is None
