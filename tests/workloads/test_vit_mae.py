"""The masked autoencoder: its size, that masked patches are not seen, and that each patch keeps its place."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gpubench.errors import GpubenchError
from gpubench.workloads.loader import load
from gpubench.workloads.vit_mae import MAE, pixels, sine_positions, take, visible
from gpubench.workloads.workload import Batch, Workload


def make(**parameters: str) -> tuple[Workload, MAE, Batch]:
    workload = load("vit_mae", "tiny", parameters).workload
    torch.manual_seed(0)
    model = workload.build().eval()
    return workload, model, workload.inputs(workload.batch_size, torch.Generator().manual_seed(1))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_base_is_vit_b_16() -> None:
    workload = load("vit_mae", "base").workload
    with torch.device("meta"):
        model = workload.build()
        assert isinstance(model, MAE)
        tables = model.positions.numel(), model.decoder_positions.numel()
        assert count(model) + sum(tables) == 111_907_840  # the published checkpoint of facebook/vit-mae-base
        encoder = count(model.embed) + model.class_token.numel() + count(model.encoder) + tables[0]
        assert encoder == 85_798_656  # ViT-B/16 without its classifier
        images, order = torch.empty(1, 3, 224, 224), torch.zeros(1, 196, dtype=torch.long)
        with FlopCounterMode(display=False) as counted:
            model(images)
        classifier = 768 * 1000
        assert counted.get_total_flops() / 2 + classifier == pytest.approx(17.564e9, rel=1e-4)  # torchvision's vit_b_16
        with FlopCounterMode(display=False) as counted:
            model(images, order)
        assert counted.get_total_flops() == 2 * 9_780_740_096


def test_the_smaller_encoder_is_deit_s() -> None:
    with torch.device("meta"):
        model = load("vit_mae", "base", {"vit": "S"}).workload.build()
    assert isinstance(model, MAE)
    encoder = count(model.embed) + model.class_token.numel() + count(model.encoder) + model.positions.numel()
    assert encoder + 384 * 1000 + 1000 == 22_050_664  # timm's deit_small_patch16_224, with its classifier


@pytest.mark.parametrize(("dimensions", "shape"), [("2", (2, 17, 32)), ("3", (2, 9, 32))])
def test_inference_gives_features_of_all_patches(dimensions: str, shape: tuple[int, ...]) -> None:
    workload, model, batch = make(dimensions=dimensions)
    assert (workload.name, workload.item) == (("vit_mae", "image") if dimensions == "2" else ("vit_mae-3d", "volume"))
    with torch.inference_mode():
        features = workload.infer(model, batch, {})
        assert features.shape == shape
        assert 0.5 < features.std() < 2
        images = batch[0].clone()
        images[:, :, -1, -1] += 1  # in the last patch
        assert not torch.allclose(workload.infer(model, (images,), {})[:, 0], features[:, 0], atol=1e-3)


@pytest.mark.parametrize("dimensions", ["2", "3"])
def test_what_is_painted_depends_on_the_visible_quarter_alone(dimensions: str) -> None:
    _, model, (images, order) = make(dimensions=dimensions)
    seen = order[:, : visible(order.shape[1])]
    assert seen.shape[1] * 4 == order.shape[1]
    hidden, shown = (torch.ones_like(images) for _ in range(2))
    for changed, is_shown in ((hidden, False), (shown, True)):
        for sample, places in enumerate(seen.tolist()):
            for place in range(order.shape[1]):
                if (place in places) == is_shown:
                    corner(changed[sample], place, 8, images.dim() - 2).fill_(2.0)
    with torch.inference_mode():
        painted = model(images, order)
        torch.testing.assert_close(model(images * hidden, order), painted)
        assert not torch.allclose(model(images * shown, order), painted, atol=1e-2)


def corner(image: torch.Tensor, place: int, patch: int, dimensions: int) -> torch.Tensor:
    """The pixels of the patch at `place` of [C, H, W] or [C, D, H, W]."""
    side = image.shape[-1] // patch
    for axis in range(dimensions):
        index = place // side ** (dimensions - 1 - axis) % side
        image = image.narrow(1 + axis, index * patch, patch)
    return image


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 1, 16, 16, 16)])
def test_pixels_and_convolution_agree_on_each_patch(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    images, dimensions = torch.randn(shape), len(shape) - 2
    convolution = (nn.Conv2d if dimensions == 2 else nn.Conv3d)(shape[1], 5, 8, stride=8, bias=False)
    by_convolution = convolution(images).flatten(2).transpose(1, 2)
    torch.testing.assert_close(pixels(images, 8) @ convolution.weight.flatten(1).T, by_convolution)
    torch.testing.assert_close(pixels(images, 8)[1, 1], corner(images[1], 1, 8, dimensions).flatten())


def test_visible_patches_return_to_their_places() -> None:
    _, model, (images, order) = make()
    found: list[torch.Tensor] = []
    model.decoder.register_forward_pre_hook(lambda _, x: found.append(x[0] - model.decoder_positions))
    with torch.inference_mode():
        model(images, order)
        first = order[:, : visible(16)]
        at_masked = take(found[0][:, 1:], order[:, visible(16) :])
        at_visible = take(found[0][:, 1:], first)
    torch.testing.assert_close(at_masked, model.mask_token.expand_as(at_masked))
    assert not torch.isclose(at_visible, model.mask_token).all(dim=-1).any()


def test_positions_tell_patches_apart_and_the_loss_only_counts_masked_ones() -> None:
    for sides, width in (((4, 4), 32), ((2, 3, 4), 16)):
        table = sine_positions(sides, width)
        assert not table[0].any()
        distances = torch.cdist(table[1:], table[1:])
        assert distances.fill_diagonal_(1).min() > 0.1
    workload, model, (images, order) = make()
    painted = torch.zeros(2, 16, 192)
    zeros = workload.loss(painter(model, painted), (images, order))
    assert zeros.item() == pytest.approx(1, abs=0.01)  # the variance of normalised pixels
    painted.scatter_(1, order[:, :4, None].expand(-1, -1, 192), 7.0)
    assert workload.loss(painter(model, painted), (images, order)).item() == zeros.item()


def painter(model: MAE, painted: torch.Tensor) -> nn.Module:
    """A model that paints what is given."""

    class Painter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = model.embed

        def forward(self, images: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
            return painted

    return Painter()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"dimensions": "4"}, "Unknown number of dimensions of vit_mae '4'."),
        ({"vit": "L"}, "Unknown encoder of vit_mae 'L'. Known: B, S."),
        ({"resolution": "20"}, "resolution is 20; it must be a multiple of 8 and at least 16"),
    ],
)
def test_values_that_do_not_fit(parameters: dict[str, str], message: str) -> None:
    with pytest.raises(GpubenchError) as caught:
        load("vit_mae", "tiny", parameters)
    assert message in str(caught.value)
