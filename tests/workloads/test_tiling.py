"""Tiles must add up to what the whole would have given."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gpubench.errors import GpubenchError
from gpubench.workloads.tiling import apply_tiled, blend_weights, lay_side


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


SIDES = [(37, 16, 4), (37, 16, 9), (41, 16, 15), (16, 16, 8), (9, 16, 4), (33, 8, 0), (32, 8, 1)]


@pytest.mark.parametrize(("size", "tile", "overlap"), SIDES)
def test_identity_comes_back(size: int, tile: int, overlap: int) -> None:
    x = torch.randn(2, 3, size, size + 3, dtype=torch.float64)
    torch.testing.assert_close(apply_tiled(lambda t: t, x, tile=tile, overlap=overlap), x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        apply_tiled(lambda t: t, x.float(), tile=tile, overlap=overlap), x.float(), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("size", "tile", "overlap"), SIDES)
def test_weights_add_up_to_one(size: int, tile: int, overlap: int) -> None:
    side = lay_side(size, tile, overlap)
    weights = blend_weights(side, 1, 1, torch.device("cpu"), torch.float64)
    total = torch.zeros(size, dtype=torch.float64)
    for start, weight in zip(side.starts, weights, strict=True):
        total[start : start + side.tile] += weight
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-12, atol=0)
    assert bool((weights > 0).all())


def test_overlap_fades_from_one_tile_to_the_next() -> None:
    first, second = blend_weights(lay_side(12, 8, 4), 1, 1, torch.device("cpu"), torch.float64)
    assert first[:4].tolist() == [1.0] * 4
    assert second[4:].tolist() == [1.0] * 4
    fade = first[4:]
    assert bool((fade.diff() < 0).all())
    expected = 0.5 + 0.5 * torch.cos(torch.pi * (torch.arange(4, dtype=torch.float64) + 0.5) / 4)
    torch.testing.assert_close(fade, expected)


def test_three_dimensions_and_several_tiles_a_call() -> None:
    x = torch.randn(2, 1, 13, 11, 9)
    calls: list[torch.Size] = []

    def double(tiles: torch.Tensor) -> torch.Tensor:
        calls.append(tiles.shape)
        return 2 * tiles

    out = apply_tiled(double, x, tile=6, overlap=2, tiles_per_call=5)
    torch.testing.assert_close(out, 2 * x)
    assert set(calls) == {torch.Size([10, 1, 6, 6, 6])}  # one shape: compiled code is compiled once
    assert len(calls) == 4  # 3 * 3 * 2 = 18 tiles, 5 a call


def test_enlarging_and_shrinking() -> None:
    x = torch.randn(1, 2, 40, 24)
    up = apply_tiled(lambda t: F.interpolate(t, scale_factor=8.0), x, tile=16, overlap=4, up=8)
    torch.testing.assert_close(up, F.interpolate(x, scale_factor=8.0), rtol=1e-5, atol=1e-6)
    down = apply_tiled(lambda t: F.avg_pool2d(t, 8), x, tile=16, overlap=8, down=8)
    torch.testing.assert_close(down, F.avg_pool2d(x, 8), rtol=1e-5, atol=1e-6)


def test_a_constant_shows_no_seam() -> None:
    out = apply_tiled(torch.ones_like, torch.zeros(1, 1, 50, 50), tile=16, overlap=5)
    torch.testing.assert_close(out, torch.ones_like(out), rtol=1e-6, atol=0)


def test_a_local_function_is_the_same_tiled() -> None:
    """A 3x3 convolution is wrong in the outermost pixel of a tile alone, where the weight is close to nothing."""
    x, kernel = torch.randn(1, 1, 64, 64), torch.randn(1, 1, 3, 3)
    whole = F.conv2d(x, kernel, padding=1)
    error = (apply_tiled(lambda t: F.conv2d(t, kernel, padding=1), x, tile=32, overlap=16) - whole).abs().max()
    hard = (apply_tiled(lambda t: F.conv2d(t, kernel, padding=1), x, tile=32, overlap=0) - whole).abs().max()
    assert error < 0.01 * whole.abs().max() < hard


def test_half_precision_keeps_its_dtype_and_layout_of_tiles() -> None:
    x = torch.randn(1, 3, 32, 32).to(torch.bfloat16, memory_format=torch.channels_last)
    seen: list[bool] = []

    def identity(tile: torch.Tensor) -> torch.Tensor:
        seen.append(tile.is_contiguous(memory_format=torch.channels_last))
        return tile

    out = apply_tiled(identity, x, tile=16, overlap=8)
    assert out.dtype == torch.bfloat16
    assert all(seen)
    torch.testing.assert_close(out, x, rtol=0.01, atol=0.01)


def test_ramps_first_used_in_inference_serve_training_too() -> None:
    x = torch.randn(1, 1, 20, 20)
    with torch.inference_mode():
        apply_tiled(lambda t: t, x, tile=7, overlap=3)
    scale = torch.ones((), requires_grad=True)
    apply_tiled(lambda t: t * scale, x, tile=7, overlap=3).sum().backward()
    torch.testing.assert_close(scale.grad, x.sum())


@pytest.mark.parametrize(
    ("size", "tile", "overlap", "down", "message"),
    [
        (32, 0, 0, 1, "tile size is 0"),
        (32, 16, 16, 1, "overlap is 16 and the tile size 16"),
        (32, 16, -1, 1, "overlap is -1"),
        (32, 12, 0, 8, "tile size is 12; it must be a multiple of 8. The nearest are 8 and 16"),
        (32, 16, 4, 8, "tile overlap is 4; it must be a multiple of 8"),
        (36, 16, 8, 8, "tiled side is 36; it must be a multiple of 8"),
    ],
)
def test_lengths_that_do_not_fit(size: int, tile: int, overlap: int, down: int, message: str) -> None:
    with pytest.raises(GpubenchError) as caught:
        apply_tiled(lambda t: t, torch.zeros(1, 1, size, size), tile=tile, overlap=overlap, down=down)
    assert message in str(caught.value)


def test_a_function_of_another_scale_is_refused() -> None:
    with pytest.raises(GpubenchError, match=r"sides \[8, 8\]; \[16, 16\] was expected"):
        apply_tiled(lambda t: t, torch.zeros(1, 1, 16, 16), tile=8, overlap=2, up=2)
