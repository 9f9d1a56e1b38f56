"""How far neighbouring tiles overlap: more overlap hides seams better but repeats more work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from gpubench.report.model import Value
from gpubench.toggles.input import tile_size
from gpubench.toggles.toggle import EvidenceResult, Integers, Scope, Stage, Toggle

if TYPE_CHECKING:
    from gpubench.toggles.model_context import ModelContext


def offers(scope: Scope) -> tuple[Value, ...]:
    """The workload's own overlap, half of it and twice it, if its layers allow them."""
    own = scope.workload.tile_overlap
    others = (own // 2, own * 2)
    return (own, *(value for value in others if value != own and tile_size.not_a_multiple(scope, value) is None))


def check(scope: Scope, value: Value, configuration: Mapping[str, Value]) -> str | None:
    """The reason why tiles cannot overlap so far, or None if they can."""
    if reason := tile_size.not_a_multiple(scope, value):
        return reason
    tile = configuration.get("tile_size")
    if tile is None or tile == tile_size.WHOLE:
        return None
    return None if int(value) < int(tile) else f"needs to be smaller than the tile side of {tile} px"


def apply(context: ModelContext, value: Value) -> None:
    """Passes the overlap to the workload's inference."""
    context.options["tile_overlap"] = int(value)


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether the workload received the overlap and the profiled step ran on tiles."""
    chosen = context.options.get("tile_overlap")
    words = f"the workload received tile_overlap {chosen}"
    if chosen != value:
        return EvidenceResult(False, words)
    tile = context.options.get("tile_size", tile_size.WHOLE)
    if tile == tile_size.WHOLE:
        return EvidenceResult(True, f"{words}; with tile_size {tile} there are no tiles to overlap")
    tiles = tile_size.evidence(context, tile)
    return EvidenceResult(tiles.took_effect, f"{words}; {tiles.detail}")


TILE_OVERLAP = Toggle(
    name="tile_overlap",
    summary="Overlap of neighbouring tiles in pixels of the full-resolution side.",
    values={},
    stage=Stage.PROBLEM,
    applies=tile_size.can_be_tiled,
    offers=offers,
    integers=Integers(
        low=0,
        high=tile_size.LARGEST,
        meaning="smaller than the tile and a multiple of what the workload's layers need",
    ),
    check=check,
    idle_when={"tile_size": (tile_size.WHOLE,)},
    apply=apply,
    evidence=evidence,
    usage=lambda value, _: f'options["tile_overlap"] = {value}  # for the workload\'s infer: px',
    changes_problem=True,
    is_plain=False,
    claims=("vae-guide",),
    source="the workload's own tiled inference",
)
