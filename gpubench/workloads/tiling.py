"""Applies a function to a large tensor tile by tile and blends the results: less memory, some repeated work.

Along each side, tiles of equal length start `tile - overlap` apart; the last one is shifted back to end where the
tensor ends. All tiles have the same shape, so a compiled function is compiled once. Overlapping tiles are blended along
half a cosine. A tile's weights are the product of one ramp per side, and each ramp is divided by the sum of all ramps
at that place, so that the weights of all tiles add up to 1 at every output element. `Blending` says how that is done.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpubench.errors import GpubenchError


@dataclass(frozen=True)
class Blending:
    """How tiles are cut out, weighted and put together: the same result but for rounding. Defaults are the fast ways.

    `tiling_toggles.py` says what each way is.
    """

    contiguity: str = "contiguous"
    ramp: str = "cached"
    blend: str = "separable"
    arithmetic: str = "in_place"
    output: str = "preallocated"

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Blending:
        """As the options `tile_contiguity`, `tile_ramp` and so on say."""
        names = {f"tile_{each.name}": each.name for each in fields(cls)}
        return cls(**{name: options[option] for option, name in names.items() if option in options})


FAST = Blending()
ran: Counter[tuple[str, str]] = Counter()  # (field of Blending, way) -> tiles that this process has treated so
called: Counter[tuple[int, int]] = Counter()  # (tiles of a call, CUDA stream; 0: the default one) -> calls so far


def ways(options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `apply_tiled`, as the options of a tiled workload say."""
    return {
        "blending": Blending.of(options),
        "tiles_per_call": options.get("tile_batch", 1),
        "streams": options.get("tile_streams", 1),
    }


def _note(field: str, way: str) -> None:
    if not torch.compiler.is_compiling():  # a count that compiled code reads would compile it anew each time
        ran[field, way] += 1


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


def tile_ramp(side: TileSide, index: int, up: int, down: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The share of tile `index` in each of its output elements along one side, `[tile * up // down]`."""
    tile = _rescale(side.tile, up, down)
    starts = [_rescale(start, up, down) for start in side.starts]
    places = torch.arange(tile, dtype=torch.float64, device=device) + (starts[index] + 0.5)

    def rise(right: int) -> Tensor:
        """From 0 to 1 where tile `right` overlaps with the one before: by more than `overlap` if it was shifted."""
        shared = starts[right - 1] + tile - starts[right]
        phase = ((places - starts[right]) / max(shared, 0.5)).clamp(0.0, 1.0)  # without overlap a step
        return 0.5 - 0.5 * torch.cos(torch.pi * phase)

    def raw(each: int) -> Tensor:
        weight = torch.ones_like(places)
        if each > 0:
            weight *= rise(each)
        if each < len(starts) - 1:
            weight *= 1.0 - rise(each + 1)
        return weight

    weight = raw(index)
    beside = [each for each, start in enumerate(starts) if abs(start - starts[index]) < tile]
    if any(starts[third] - starts[first] < tile for first, third in zip(beside, beside[2:], strict=False)):
        weight = weight / torch.stack([raw(each) for each in beside]).sum(0)  # of two alone the sum is 1
    return weight.to(dtype)


@functools.lru_cache(maxsize=64)
def blend_weights(side: TileSide, up: int, down: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The `tile_ramp` of each tile along one side, `[tiles, tile * up // down]`. Cached: it depends only on shapes."""
    # Created outside inference mode: an inference tensor in the cache could not be used in training later.
    with torch.inference_mode(False), torch.no_grad():
        return torch.stack([tile_ramp(side, index, up, down, device, dtype) for index in range(len(side.starts))])


@dataclass(frozen=True)
class _Layout:
    """The tiles along the last sides of a tensor, and how much longer those sides are in the output."""

    sides: Sequence[TileSide]
    up: int
    down: int

    def cut(self, x: Tensor, position: tuple[int, ...]) -> Tensor:
        """One tile of the input, a view."""
        for axis, (side, index) in enumerate(zip(self.sides, position, strict=True), start=-len(self.sides)):
            x = x.narrow(axis, side.starts[index], side.tile)
        return x

    def lengths(self) -> list[int]:
        """The sides of the whole output."""
        return [_rescale(side.size, self.up, self.down) for side in self.sides]

    def starts(self, position: tuple[int, ...]) -> list[int]:
        """Where a tile begins in the output."""
        places = zip(self.sides, position, strict=True)
        return [_rescale(side.starts[index], self.up, self.down) for side, index in places]

    def check(self, output: Tensor) -> None:
        """Raises GpubenchError if the output of a tile has other sides than it should."""
        expected = [_rescale(side.tile, self.up, self.down) for side in self.sides]
        if (got := list(output.shape[-len(self.sides) :])) != expected:
            raise GpubenchError(
                f"The tiled function returned sides {got}; {expected} was expected.",
                f"It must multiply each side by {self.up}/{self.down}.",
            )


def apply_tiled(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    tile: int,
    overlap: int,
    up: int = 1,
    down: int = 1,
    tiles_per_call: int = 1,
    axes: int | None = None,
    blending: Blending = FAST,
    streams: int = 1,
) -> Tensor:
    """`function(x)`, computed tile by tile and blended: `[B, C, *sides]` to `[B, K, *(sides * up / down)]`.

    `tile` and `overlap` are in elements of `x`; `function` must enlarge every tiled side by `up` / `down`. With `axes`
    only so many of the last sides are tiled, and those before may become of any length.
    `tiles_per_call` tiles are stacked in the batch dimension of one call. If the last call has fewer, copies of its
    last tile fill it, and their results are dropped, so that every call has the same shape.
    On a GPU `streams` calls may run at a time, on CUDA streams in turn; blending is done on the current one.
    Sums are kept in fp32 (fp64 for fp64 outputs) and returned in the output's own dtype.
    Raises GpubenchError for lengths that do not fit, and if `function` returns an unexpected size.
    """
    sides = x.shape[2:] if axes is None else x.shape[-axes:]
    layout = _Layout([lay_side(size, tile, overlap, down) for size in sides], up, down)
    if all(len(side.starts) == 1 for side in layout.sides):
        return function(x)
    positions = list(itertools.product(*(range(len(side.starts)) for side in layout.sides)))
    tiles_per_call = min(tiles_per_call, len(positions))
    result: Tensor | None = None
    dtype = x.dtype
    chunks = [positions[first : first + tiles_per_call] for first in range(0, len(positions), tiles_per_call)]

    def call(chunk: list[tuple[int, ...]]) -> Tensor:
        filled = chunk + chunk[-1:] * (tiles_per_call - len(chunk))
        _note_call(tiles_per_call, x.device)
        return function(_stack([layout.cut(x, position) for position in filled], blending))

    for chunk, outputs in zip(chunks, _in_turn(call, chunks, streams, x.device), strict=True):
        if result is None:
            dtype = outputs.dtype
            layout.check(outputs)
        for position, output in zip(chunk, outputs.split(x.shape[0]), strict=False):
            result = _add(result, _weighted(output, layout, position, blending), layout, position, blending)
    assert result is not None  # there is always a position
    return result.to(dtype)


def _note_call(tiles: int, device: torch.device) -> None:
    if not torch.compiler.is_compiling():
        called[tiles, torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0] += 1


def _in_turn(
    call: Callable[[list[tuple[int, ...]]], Tensor],
    chunks: Iterable[list[tuple[int, ...]]],
    streams: int,
    device: torch.device,
) -> Iterator[Tensor]:
    """What `call` makes of each chunk, in order; on a GPU so many chunks are under way at a time."""
    if streams == 1 or device.type != "cuda":
        yield from map(call, chunks)
        return
    current, sides = torch.cuda.current_stream(device), _side_streams(device, streams)
    under_way: deque[tuple[torch.cuda.Stream, Tensor]] = deque()

    def next_one() -> Tensor:
        side, outputs = under_way.popleft()
        current.wait_stream(side)  # on which nothing but that call has been enqueued since
        return outputs

    for chunk, side in zip(chunks, itertools.cycle(sides), strict=False):
        side.wait_stream(current)  # which makes the input
        with torch.cuda.stream(side):
            outputs = call(chunk)
        outputs.record_stream(current)  # else its memory would be used again on `side` while it is read here
        under_way.append((side, outputs))
        if len(under_way) == streams:
            yield next_one()
    while under_way:
        yield next_one()


@functools.lru_cache(maxsize=8)
def _side_streams(device: torch.device, count: int) -> tuple[torch.cuda.Stream, ...]:
    return tuple(torch.cuda.Stream(device) for _ in range(count))


def _stack(tiles: list[Tensor], blending: Blending) -> Tensor:
    if len(tiles) == 1 and blending.contiguity == "views":
        _note("contiguity", "views")
        return tiles[0]
    _note("contiguity", "contiguous")
    return torch.cat(tiles)  # copies a single tile too, so that all tiles are dense and have equal strides


def _weighted(output: Tensor, layout: _Layout, position: tuple[int, ...], blending: Blending) -> Tensor:
    """`output` times the tile's weights, a new tensor of the dtype that sums are kept in."""
    dtype = torch.promote_types(output.dtype, torch.float32)
    weights = []
    for axis, (side, index) in enumerate(zip(layout.sides, position, strict=True), start=1):
        if blending.ramp == "cached":
            ramp = blend_weights(side, layout.up, layout.down, output.device, dtype)[index]
        else:
            ramp = tile_ramp(side, index, layout.up, layout.down, output.device, dtype)
        weights.append(ramp.view(-1, *[1] * (len(position) - axis)))
    if blending.blend == "mask":
        weights = [functools.reduce(torch.mul, weights)]
    _note("ramp", blending.ramp)
    _note("blend", blending.blend)
    weighted = output * weights[0]
    for weight in weights[1:]:
        weighted = weighted.mul_(weight) if blending.arithmetic == "in_place" else weighted * weight
    return weighted


def _add(
    result: Tensor | None, weighted: Tensor, layout: _Layout, position: tuple[int, ...], blending: Blending
) -> Tensor:
    """The sum of the tiles so far, and `weighted`."""
    lengths, starts, sizes = layout.lengths(), layout.starts(position), weighted.shape[-len(position) :]
    _note("arithmetic", blending.arithmetic)
    _note("output", blending.output)
    if blending.output == "preallocated":
        if result is None:
            result = weighted.new_zeros(*weighted.shape[: -len(position)], *lengths)
        region = result
        for axis, (start, size) in enumerate(zip(starts, sizes, strict=True), start=-len(position)):
            region = region.narrow(axis, start, size)
        if blending.arithmetic == "in_place":
            region.add_(weighted)
        else:
            region.copy_(region + weighted)
        return result
    margins = [(start, length - start - size) for start, length, size in zip(starts, lengths, sizes, strict=True)]
    whole = F.pad(weighted, [margin for pair in reversed(margins) for margin in pair])
    if result is None:
        return whole
    return result.add_(whole) if blending.arithmetic == "in_place" else result + whole
