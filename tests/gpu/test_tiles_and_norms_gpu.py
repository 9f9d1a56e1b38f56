"""CUDA streams for tiles, the fused norm in Triton, and weights loaded to the device, on a real GPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gpubench.measure.trace import trace_step
from gpubench.toggles import get
from gpubench.worker.prepare import apply_toggles, build, make_batches
from gpubench.worker.step import Stepper
from gpubench.workloads import tiling
from gpubench.workloads.loader import load
from gpubench.workloads.norms import NORM_SILU, native
from gpubench.workloads.tiling import apply_tiled
from gpubench.workloads.tiling_toggles import TILE_BATCH, TILE_STREAMS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs an NVIDIA GPU: torch.cuda.is_available() is false here"
    ),
]
triton = pytest.mark.skipif(native.unavailable("cuda") is not None, reason="Triton is not installed")
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


@pytest.fixture(autouse=True)
def _strict() -> None:
    tiling.called.clear()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


@pytest.mark.parametrize("tiles", [1, 2])
@pytest.mark.parametrize("streams", [1, 2, 4])
def test_tiles_on_streams_give_what_one_stream_gives(streams: int, tiles: int) -> None:
    """Long calls on memory that is used again and again: what is read too early or too late would differ."""
    kernel = torch.randn(8, 8, 3, 3, device="cuda")
    first = torch.randn(8, 3, 1, 1, device="cuda")

    def function(x: torch.Tensor) -> torch.Tensor:
        x = F.conv2d(x, first)
        for _ in range(20):
            x = torch.tanh(F.conv2d(x, kernel, padding=1))
        return x

    for _ in range(3):
        x = torch.randn(1, 3, 512, 512, device="cuda")
        one = apply_tiled(function, x, tile=128, overlap=32)
        tiling.called.clear()
        several = apply_tiled(function, x, tile=128, overlap=32, tiles_per_call=tiles, streams=streams)
        torch.testing.assert_close(several, one, rtol=1e-4, atol=1e-4)
        assert len({stream for _, stream in tiling.called}) == streams


@pytest.mark.parametrize("reference", ["vae", "video_vae"])
@pytest.mark.parametrize("asked", [1, 2, 4])
def test_streams_prove_themselves(reference: str, asked: int) -> None:
    case = load(reference, "tiny")
    configuration = {"tile_size": 16, "tile_overlap": 8, "tile_streams": asked, "tile_batch": 2}
    context = build(case, "inference", torch.device("cuda"), configuration, 0)
    apply_toggles(context, make_batches(case, 1, 1, 0))
    Stepper(context).run(0)
    proofs = {value: TILE_STREAMS.evidence(context, value).took_effect for value in TILE_STREAMS.values}
    assert proofs == {value: value == asked for value in TILE_STREAMS.values}
    assert TILE_BATCH.evidence(context, 2).took_effect is True


@triton
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", [(2, 8, 5, 7), (1, 64, 130, 70), (3, 12, 1, 1), (2, 6, 4, 3, 5)])
def test_the_fused_norm_equals_torchs_two_operators(shape: tuple[int, ...], last: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=generator, dtype=torch.float64) * 2 + 3).cuda().to(dtype)
    x = x.contiguous(memory_format=FORMATS[len(shape)]) if last else x
    weight, bias = (torch.randn(shape[1], generator=generator, dtype=torch.float64).cuda().to(dtype) for _ in range(2))
    leaves = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    wide = [tensor.detach().double().requires_grad_() for tensor in leaves]
    got = native.norm_silu(*leaves, 2, 1e-6)
    exact = F.silu(F.group_norm(wide[0], 2, wide[1], wide[2], 1e-6))
    limit = {torch.float64: 1e-10, torch.float32: 1e-5}.get(dtype, torch.finfo(dtype).eps)
    assert got.dtype == dtype and got.stride() == x.stride()
    assert float((got.double() - exact).abs().max()) <= limit * max(1.0, float(exact.abs().max()))
    found = torch.autograd.grad(got.sum(), leaves)
    for one, other in zip(found, torch.autograd.grad(exact.sum(), wide), strict=True):
        assert float((one.double() - other).norm()) <= 16 * limit * max(1.0, float(other.norm()))


@triton
@pytest.mark.parametrize("compiled", ["off", "default", "reduce-overhead"])
@pytest.mark.parametrize("asked", ["torch", "fused"])
def test_the_fused_norm_proves_itself(asked: str, compiled: str) -> None:
    case = load("vae", "tiny")
    context = build(case, "inference", torch.device("cuda"), {"norm_silu": asked, "compile": compiled}, 0)
    apply_toggles(context, make_batches(case, 1, 1, 0))
    stepper = Stepper(context)
    for _ in range(4):
        stepper.run(0)
    context.trace = trace_step(lambda: stepper.run(0), cuda=True)
    proofs = {value: NORM_SILU.evidence(context, value).took_effect for value in NORM_SILU.values}
    assert proofs == {value: value == asked for value in NORM_SILU.values}


@pytest.mark.parametrize(
    ("value", "precision"), [("safetensors-final", "fp16-weights"), ("fp32-convert", "fp16-weights")]
)
def test_weights_are_loaded_to_the_device(value: str, precision: str) -> None:
    pytest.importorskip("safetensors")
    case, toggle = load("resnet50", "tiny"), get("weight_loading")
    context = build(case, "inference", torch.device("cuda"), {"precision": precision, "weight_loading": value}, 0)
    apply_toggles(context, make_batches(case, 1, 1, 0))
    Stepper(context).run(0)
    assert toggle.evidence(context, value).took_effect is True
    weights = sum(weight.nbytes for weight in context.model.state_dict().values())
    assert context.load_peak_bytes is not None
    assert (context.load_peak_bytes > 1.8 * weights) == (value == "fp32-convert")
