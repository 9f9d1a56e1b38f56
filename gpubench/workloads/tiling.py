"""Applies a function to a large tensor tile by tile and blends the results: less memory, some repeated work.

Along each side, tiles of equal length start `tile - overlap` apart; the last one is shifted back to end where the
tensor ends. All tiles have the same shape, so a compiled function is compiled once. Overlapping tiles are blended along
half a cosine. A tile's weights are the product of one ramp per side, and each ramp is divided by the sum of all ramps
at that place, so that the weights of all tiles add up to 1 at every output element.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from gpubench.errors import GpubenchError


@dataclass(frozen=True)
class TileSide:
    """The tiles along one side, in input elements."""

    size: int
    tile: int
    starts: tuple[int, ...]


def lay_side(size: int, tile: int, overlap: int, multiple: int = 1) -> TileSide:
    """The tiles along a side of `size` elements; a single tile if the side is not longer than `tile`.

    Raises GpubenchError if `overlap` is not below `tile` or a length is not a multiple of `multiple`.
    """
    if tile < 1:
        raise GpubenchError(f"The tile size is {tile}.", f"Give a multiple of {multiple} of at least {multiple}.")
    if not 0 <= overlap < tile:
        raise GpubenchError(
            f"The tile overlap is {overlap} and the tile size {tile}; it must be at least 0 and below the tile.",
            f"Give an overlap of at most {tile // 2}, half a tile.",
        )
    for name, length in (("tile size", tile), ("tile overlap", overlap), ("tiled side", size)):
        if length % multiple:
            raise GpubenchError(
                f"The {name} is {length}; it must be a multiple of {multiple}.",
                f"The nearest are {length // multiple * multiple} and {(length // multiple + 1) * multiple}.",
            )
    if size <= tile:
        return TileSide(size, size, (0,))
    starts = (*range(0, size - tile, tile - overlap), size - tile)
    return TileSide(size, tile, starts)


def _rescale(length: int, up: int, down: int) -> int:
    return length * up // down


@functools.lru_cache(maxsize=64)
def blend_weights(side: TileSide, up: int, down: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """The share of each tile in each of its output elements along one side, `[tiles, tile * up // down]`.

    Cached, since it depends only on shapes.
    """
    # Created outside inference mode: an inference tensor in the cache could not be used in training later.
    with torch.inference_mode(False), torch.no_grad():
        tile = _rescale(side.tile, up, down)
        starts = [_rescale(start, up, down) for start in side.starts]
        weights = torch.ones(len(starts), tile, dtype=torch.float64)
        for left, right in itertools.pairwise(range(len(starts))):
            shared = tile - (starts[right] - starts[left])  # larger than `overlap` for the shifted last tile
            phase = (torch.arange(shared, dtype=torch.float64) + 0.5) / max(1, shared)
            ramp = 0.5 - 0.5 * torch.cos(torch.pi * phase)
            weights[right, :shared] *= ramp
            weights[left, tile - shared :] *= ramp.flip(0)
        total = torch.zeros(_rescale(side.size, up, down), dtype=torch.float64)
        for start, weight in zip(starts, weights, strict=True):
            total[start : start + tile] += weight
        for start, weight in zip(starts, weights, strict=True):
            weight /= total[start : start + tile]
        return weights.to(device=device, dtype=dtype)


def _cut(x: torch.Tensor, sides: Sequence[TileSide], positions: list[tuple[int, ...]]) -> torch.Tensor:
    tiles = []
    for position in positions:
        tile = x
        for axis, (side, index) in enumerate(zip(sides, position, strict=True), start=2):
            tile = tile.narrow(axis, side.starts[index], side.tile)
        tiles.append(tile)
    return torch.cat(tiles)  # copies a single tile too, so that all tiles are dense and have equal strides


def apply_tiled(
    function: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    *,
    tile: int,
    overlap: int,
    up: int = 1,
    down: int = 1,
    tiles_per_call: int = 1,
) -> torch.Tensor:
    """`function(x)`, computed tile by tile and blended: `[B, C, *sides]` to `[B, K, *(sides * up / down)]`.

    `tile` and `overlap` are in elements of `x`; `function` must enlarge every spatial side by `up` / `down`.
    `tiles_per_call` tiles are stacked in the batch dimension of one call. If the last call has fewer, copies of its
    last tile fill it, and their results are dropped, so that every call has the same shape.
    Sums are kept in fp32 (fp64 for fp64 outputs) and returned in the output's own dtype.
    Raises GpubenchError for lengths that do not fit, and if `function` returns an unexpected size.
    """
    sides = [lay_side(size, tile, overlap, down) for size in x.shape[2:]]
    if all(len(side.starts) == 1 for side in sides):
        return function(x)
    positions = list(itertools.product(*(range(len(side.starts)) for side in sides)))
    tiles_per_call = min(tiles_per_call, len(positions))
    result: torch.Tensor | None = None
    dtype = x.dtype
    for first in range(0, len(positions), tiles_per_call):
        chunk = positions[first : first + tiles_per_call]
        filled = chunk + chunk[-1:] * (tiles_per_call - len(chunk))
        outputs = function(_cut(x, sides, filled))
        if result is None:
            dtype = outputs.dtype
            result = _empty_result(outputs, x.shape[0], sides, up, down)
        for position, output in zip(chunk, outputs.split(x.shape[0]), strict=False):
            _add(result, output, sides, position, up, down)
    assert result is not None  # there is always a position
    return result.to(dtype)


def _empty_result(outputs: torch.Tensor, batch: int, sides: Sequence[TileSide], up: int, down: int) -> torch.Tensor:
    expected = [_rescale(side.tile, up, down) for side in sides]
    if list(outputs.shape[2:]) != expected:
        raise GpubenchError(
            f"The tiled function returned sides {list(outputs.shape[2:])}; {expected} was expected.",
            f"It must multiply each side by {up}/{down}.",
        )
    shape = (batch, outputs.shape[1], *(_rescale(side.size, up, down) for side in sides))
    return outputs.new_zeros(shape, dtype=torch.promote_types(outputs.dtype, torch.float32))


def _add(
    result: torch.Tensor, output: torch.Tensor, sides: Sequence[TileSide], position: tuple[int, ...], up: int, down: int
) -> None:
    region, weighted = result, output.to(result.dtype)
    for axis, (side, index) in enumerate(zip(sides, position, strict=True), start=2):
        region = region.narrow(axis, _rescale(side.starts[index], up, down), output.shape[axis])
        weight = blend_weights(side, up, down, output.device, result.dtype)[index]
        weighted = weighted * weight.view(-1, *(1 for _ in range(axis + 1, output.dim())))
    region.add_(weighted)
