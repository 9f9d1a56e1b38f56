"""Tiled encode and decode, and sliding windows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gpubench.errors import GpubenchError
from gpubench.workloads.catalog import SIZES
from gpubench.workloads.loader import load
from gpubench.workloads.vae import decode, encode


class LocalAutoencoder(nn.Module):
    """What the VAE's tiled paths need, without its global attention and norms, so that tiles can equal the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.AvgPool2d(8))
        self.decoder = nn.Sequential(nn.Upsample(scale_factor=8.0), nn.Conv2d(4, 3, 3, padding=1))


def test_tiled_vae_equals_whole_for_a_local_model() -> None:
    torch.manual_seed(0)
    model, images = LocalAutoencoder(), torch.randn(2, 3, 72, 72)
    tiled = {"tile_size": 32, "tile_overlap": 16}
    with torch.inference_mode():
        latents = encode(model, images, {})
        assert latents.shape == (2, 4, 9, 9)
        # Only the outermost pixels of a tile differ, where its weight is small.
        assert (encode(model, images, tiled) - latents).norm() < 0.02 * latents.norm()
        whole = decode(model, latents, {})
        assert (decode(model, latents, tiled) - whole).norm() < 0.02 * whole.norm()


@pytest.mark.parametrize("task", ["reconstruct", "encode", "decode"])
def test_tiled_vae_has_the_whole_one_s_shape_and_differs(task: str) -> None:
    workload = load("vae", "tiny", {"task": task}).workload
    model = workload.build().eval()
    batch = workload.inputs(1, torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = workload.infer(model, batch, {"tile_size": 0})
        tiled = workload.infer(model, batch, {"tile_size": 16, "tile_overlap": 8})
        one_tile = workload.infer(model, batch, {"tile_size": 32, "tile_overlap": 8})
    assert tiled.shape == whole.shape
    assert not torch.equal(tiled, whole)  # group norm and attention see less of the image: tiling really happened
    assert torch.equal(one_tile, whole)


def test_all_tiles_of_the_vae_have_one_shape() -> None:
    workload = load("vae", "tiny", {"resolution": "56"}).workload
    model = workload.build().eval()
    shapes: dict[str, set[torch.Size]] = {"encoder": set(), "decoder": set()}
    for part, seen in shapes.items():
        model.get_submodule(part).register_forward_pre_hook(lambda _, x, seen=seen: seen.add(x[0].shape))
    with torch.inference_mode():
        batch = workload.inputs(1, torch.Generator())
        workload.infer(model, batch, {"tile_size": 24, "tile_overlap": 8})
    assert shapes == {"encoder": {torch.Size([1, 3, 24, 24])}, "decoder": {torch.Size([1, 4, 3, 3])}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile_size": 20}, "tile size is 20; it must be a multiple of 8"),
        ({"tile_size": 16, "tile_overlap": 4}, "tile overlap is 4; it must be a multiple of 8"),
        ({"tile_size": 16, "tile_overlap": 16}, "overlap"),
    ],
)
def test_vae_tiles_that_do_not_fit(options: dict[str, int], message: str) -> None:
    workload = load("vae", "tiny").workload
    with pytest.raises(GpubenchError) as caught:
        workload.infer(workload.build(), workload.inputs(1, torch.Generator()), options)
    assert message in str(caught.value)


def test_offered_tiles_fit() -> None:
    for reference, parameters in (("vae", {}), ("video_vae", {}), ("unet3d", {"view": "whole"})):
        for size in SIZES:
            workload = load(reference, size, parameters).workload
            assert workload.tiling.sizes
            for tile in workload.tiling.sizes:
                assert tile % workload.tiling.multiple == 0
                assert workload.tiling.overlap % workload.tiling.multiple == 0
                assert workload.tiling.overlap < tile < workload.resolution


def test_a_volume_in_windows_of_the_patch_s_side_is_the_sliding_view() -> None:
    outputs = []
    for view, options in (("sliding", {}), ("whole", {"tile_size": 8, "tile_overlap": 4}), ("whole", {})):
        workload = load("unet3d", "tiny", {"view": view}).workload
        torch.manual_seed(0)
        model = workload.build().eval()
        with torch.inference_mode():
            outputs.append(workload.infer(model, workload.inputs(1, torch.Generator().manual_seed(0)), options))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_a_window_that_cannot_be_halved() -> None:
    workload = load("unet3d", "tiny", {"view": "whole"}).workload
    with pytest.raises(GpubenchError, match="tile size is 7; it must be a multiple of 2"):
        workload.infer(workload.build(), workload.inputs(1, torch.Generator()), {"tile_size": 7})
