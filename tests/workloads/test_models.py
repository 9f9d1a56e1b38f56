"""What must hold for every bundled workload."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gpubench.errors import GpubenchError
from gpubench.workloads.batch import make as make_batch
from gpubench.workloads.building import build_model
from gpubench.workloads.catalog import SIZES, names
from gpubench.workloads.loader import load
from gpubench.workloads.resnet50 import Bottleneck, Config, ResNet
from gpubench.workloads.workload import Batch, Workload

VARIANTS = [
    ("diffusion", {"compiled": "all"}),
    ("gpt", {}),
    ("gpt", {"positions": "rotary", "kv_heads": "1"}),
    ("resnet50", {}),
    ("vae", {}),
    ("vae", {"task": "encode"}),
    ("vae", {"task": "decode"}),
    ("video_vae", {}),
    ("video_vae", {"task": "encode"}),
    ("video_vae", {"task": "decode"}),
    ("unet3d", {}),
    ("unet3d", {"norm": "group"}),
    ("unet3d", {"view": "sliding"}),
    ("unet3d", {"view": "whole"}),
    ("unet3d", {"task": "labelfree"}),
    ("vit_mae", {}),
]
NOT_TRAINED = {"diffusion": 1}  # compile targets that training does not call: the decoder
TRAINED = [(name, parameters) for name, parameters in VARIANTS if load(name, "tiny", parameters).workload.loss]


def make(name: str, parameters: dict[str, str]) -> tuple[Workload, nn.Module, Batch]:
    workload = load(name, "tiny", parameters).workload
    torch.manual_seed(0)
    model = workload.build().eval()
    return workload, model, make_batch(workload, workload.batch_size, 1)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet50", 25_557_032),  # torchvision's resnet50, documented with its weights
        ("vae", 83_653_863),  # AutoencoderKL of Stable Diffusion 1.x, as its checkpoint counts
    ],
)
def test_base_is_the_real_architecture(name: str, count: int) -> None:
    with torch.device("meta"):
        model = load(name, "base").workload.build()
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_every_bundled_workload_has_all_sizes() -> None:
    for name in names():
        assert {load(name, size).size for size in SIZES} == set(SIZES)


def test_base_shapes() -> None:
    assert make_batch(load("resnet50", "base").workload, 2, 0)[0].shape == (2, 3, 224, 224)
    assert make_batch(load("vae", "base").workload, 1, 0)[0].shape == (1, 3, 512, 512)
    patches, labels = make_batch(load("unet3d", "base").workload, 2, 0)
    assert patches.shape == (2, 1, 64, 64, 64)
    assert labels.shape == (2, 64, 64, 64)
    batches = {name: load(name, "base").workload.batch_size for name in ("resnet50", "vae", "unet3d")}
    assert batches == {"resnet50": 32, "vae": 1, "unet3d": 8}


SMALLER_MEDIUM = ("diffusion", "dit")  # whose published model does not fit into 6 GiB


BIG = [pytest.param(name, marks=pytest.mark.slow) for name in SMALLER_MEDIUM]  # a billion parameters


@pytest.mark.parametrize("name", [*(name for name in names() if name not in SMALLER_MEDIUM), *BIG])
def test_sizes_for_other_memory_are_the_same_model_on_other_inputs(name: str) -> None:
    def of(size: str) -> tuple[set[tuple[str, tuple[int, ...]]], int]:
        work = load(name, size).workload
        with torch.device("meta"):
            shapes = {(key, tuple(value.shape)) for key, value in build_model(work).state_dict().items()}
        return shapes, work.batch_size * work.items_per_sample * (work.resolution or 1) ** 2

    (*shapes, medium), amounts = zip(*(of(size) for size in SIZES[:-2]), strict=True)
    assert all(each == shapes[0] for each in shapes)
    assert (medium == shapes[0]) == (name not in SMALLER_MEDIUM)
    assert list(amounts) == sorted(set(amounts), reverse=True)
    assert load("resnet50", "large").workload.batch_size >= 128


def test_the_stride_is_in_the_3x3_convolution() -> None:
    model = load("resnet50", "tiny").workload.build()
    strided = [m.kernel_size for m in model.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    assert strided == [(7, 7), (3, 3), (1, 1)]  # the stem, the bottleneck's middle, its shortcut


@pytest.mark.parametrize(("name", "parameters"), VARIANTS)
def test_same_seed_same_model_and_inputs(name: str, parameters: dict[str, str]) -> None:
    _, first, batch = make(name, parameters)
    workload, second, again = make(name, parameters)
    for one, two in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two)
    for one, two in zip(batch, again, strict=True):
        assert torch.equal(one, two)
    other = make_batch(workload, workload.batch_size, 2)
    assert not torch.equal(batch[0], other[0])
    assert all(bool(tensor.any()) for tensor in batch)


SHAPES = {
    "diffusion": (2, 3, 64, 64),
    "gpt": (2, 256),
    "resnet50": (2, 10),
    "vae": (1, 3, 32, 32),
    "vae-encode": (1, 4, 4, 4),
    "vae-decode": (1, 3, 32, 32),
    "video_vae": (2, 3, 5, 32, 32),
    "video_vae-encode": (2, 16, 2, 4, 4),
    "video_vae-decode": (2, 3, 5, 32, 32),
    "unet3d": (2, 3, 8, 8, 8),
    "unet3d-sliding": (1, 3, 12, 12, 12),
    "unet3d-whole": (1, 3, 12, 12, 12),
    "unet3d-labelfree": (2, 1, 32, 32),
    "vit_mae": (2, 17, 32),
}


@pytest.mark.parametrize(("name", "parameters"), VARIANTS)
def test_outputs_keep_their_shape_and_order_of_one(name: str, parameters: dict[str, str]) -> None:
    workload, model, batch = make(name, parameters)
    with torch.inference_mode():
        output = workload.infer(model, batch, {})
    assert output.shape == SHAPES[workload.name]
    assert 0.05 < output.std() < 20
    inference_only = "view" in parameters or parameters.get("task") in ("encode", "decode")
    assert workload.modes == (("inference",) if inference_only else ("inference", "training"))


def test_sixteen_blocks_without_statistics_do_not_explode() -> None:
    """Untrained norms do not normalise in inference; plain residual sums would double the variance 16 times."""
    torch.manual_seed(0)
    model = ResNet(Config(width=8, resolution=32, batch_size=2, classes=10)).eval()
    assert sum(isinstance(module, Bottleneck) for module in model.modules()) == 16
    with torch.inference_mode():
        assert 0.1 < model(torch.randn(2, 3, 32, 32)).std() < 5


@pytest.mark.parametrize("name", ["resnet50", "vae", "video_vae", "unet3d"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_stay_near_fp32(name: str, dtype: torch.dtype) -> None:
    workload, model, batch = make(name, {})
    with torch.inference_mode():
        exact = workload.infer(model, batch, {})
        model.to(dtype)
        halved = tuple(t.to(dtype) if t.is_floating_point() else t for t in batch)
        output = workload.infer(model, halved, {})
    assert output.dtype == dtype
    error = (output.float() - exact).norm() / exact.norm()
    assert error < (0.05 if dtype == torch.bfloat16 else 0.01)


@pytest.mark.parametrize(("name", "parameters"), TRAINED)
def test_training_in_bf16_autocast_and_bf16_weights_is_finite(name: str, parameters: dict[str, str]) -> None:
    workload, model, batch = make(name, parameters)
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = workload.loss(model, batch)
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    model.bfloat16().zero_grad()
    loss = workload.loss(model, tuple(t.bfloat16() if t.is_floating_point() else t for t in batch))
    loss.backward()
    assert bool(loss.isfinite())


@pytest.mark.parametrize(("name", "parameters"), TRAINED)
def test_training_learns(name: str, parameters: dict[str, str]) -> None:
    workload, model, batch = make(name, parameters)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = workload.loss(model, batch)
        loss.backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters() if p.requires_grad)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]


def test_a_training_step_is_repeatable() -> None:
    """The VAE's latent noise is an input: no hidden draw from the global generator."""
    workload, model, batch = make("vae", {})
    assert workload.loss(model, batch).item() == workload.loss(model, batch).item()
    images, noise = batch
    assert workload.loss(model, batch).item() != workload.loss(model, (images, noise + 1)).item()


@pytest.mark.parametrize(("name", "parameters"), TRAINED)
def test_channels_last_gives_the_same(name: str, parameters: dict[str, str]) -> None:
    workload, model, batch = make(name, parameters)
    layout = torch.channels_last_3d if batch[0].dim() == 5 else torch.channels_last
    with torch.inference_mode():
        expected = workload.infer(model, batch, {})
        moved = tuple(t.to(memory_format=layout) if t.dim() >= 4 else t for t in batch[:1])
        output = workload.infer(model.to(memory_format=layout), (*moved, *batch[1:]), {})
    torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters"),
    [pytest.param(*each, marks=[pytest.mark.slow] if each[0] == "video_vae" else []) for each in VARIANTS],
)
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_each_compile_target_is_one_graph(name: str, parameters: dict[str, str], mode: str) -> None:
    workload, model, batch = make(name, parameters)
    if mode not in workload.modes:
        return
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for target in workload.compile_targets:
        model.get_submodule(target).compile(backend="eager", fullgraph=True)
    if mode == "training":
        workload.loss(model.train(), batch).backward()
    else:
        with torch.inference_mode():
            workload.infer(model, batch, {})
    # One graph for each target, and nothing left to run eager in silence, as a bare nn.Sequential would be.
    called = len(workload.compile_targets) - (NOT_TRAINED.get(name, 0) if mode == "training" else 0)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == called
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize(
    ("name", "size", "parameters", "message"),
    [
        (
            "vae",
            "bsae",
            {},
            "Unknown size of vae 'bsae'. Did you mean 'base'? Known: base, huge, large, medium, small, tiny, xlarge.",
        ),
        ("resnet50", "big", {}, "Unknown size of resnet50 'big'. Known: base, huge, large, medium, small, tiny"),
        ("unet3d", "tinny", {}, "Did you mean 'tiny'?"),
        ("vae", "tiny", {"task": "encod"}, "Unknown task of vae 'encod'. Did you mean 'encode'?"),
        ("vae", "tiny", {"resolution": "100"}, "resolution is 100; it must be a multiple of 8 and at least 16"),
        ("vae", "tiny", {"resolution": "100"}, "The nearest allowed value is 96."),
        ("vae", "tiny", {"resolution": "-8"}, "The nearest allowed value is 16."),
        ("resnet50", "tiny", {"resolution": "31"}, "The nearest allowed value is 32."),
        ("unet3d", "base", {"resolution": "16"}, "The nearest allowed value is 32."),
    ],
)
def test_wrong_values_name_what_is_allowed(name: str, size: str, parameters: dict[str, str], message: str) -> None:
    with pytest.raises(GpubenchError) as caught:
        load(name, size, parameters)
    assert message in str(caught.value)
