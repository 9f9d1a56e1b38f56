"""Checks of a bundled workload's parameters; each message names the value and the nearest allowed one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from gpubench.errors import GpubenchError, unknown_name

T = TypeVar("T")


def choose(kind: str, name: str, choices: Mapping[str, T]) -> T:
    """The choice of that name. Raises GpubenchError that suggests the nearest and lists all."""
    if name not in choices:
        raise unknown_name(kind, name, choices)
    return choices[name]


def check_side(name: str, value: int, *, multiple: int, least: int, why: str) -> int:
    """`value` (in pixels or voxels) if it is a multiple of `multiple` and at least `least`.

    Raises GpubenchError naming the nearest allowed value.
    """
    if value >= least and value % multiple == 0:
        return value
    nearest = max(least, multiple * max(1, round(value / multiple)))
    raise GpubenchError(
        f"{name} is {value}; it must be a multiple of {multiple} and at least {least}, because {why}.",
        f"The nearest allowed value is {nearest}.",
    )


def compile_choices(stages: tuple[str, ...], denoiser: str) -> dict[str, tuple[str, ...]]:
    """The compile targets of a model that denoises in a loop, by the names that its parameter `compiled` knows."""
    others = tuple(stage for stage in stages if stage != denoiser)
    return {"denoiser": (denoiser,), "others": others, "all": stages}


def tile_sides(options: Mapping[str, Any], *, multiple: int, why: str) -> tuple[int, int]:
    """Tile size (0: whole) and overlap of `options`, in pixels; GpubenchError for no multiple, because of `why`."""
    tile, overlap = options.get("tile_size", 0), options.get("tile_overlap", 0)
    if tile:
        check_side("tile size", tile, multiple=multiple, least=multiple, why=why)
        check_side("tile overlap", overlap, multiple=multiple, least=0, why=why)
    return tile, overlap
