"""Inference on tiles: less memory than the whole input, but work at the seams is repeated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from gpubench.report.model import Value
from gpubench.toggles.evidence import convolutions, recorded
from gpubench.toggles.toggle import EvidenceResult, Integers, Scope, Stage, Toggle
from gpubench.workloads.batch import tensors

if TYPE_CHECKING:
    from gpubench.toggles.model_context import ModelContext

WHOLE = 0
LARGEST = 65536  # pixels: larger than any input that fits, and low enough to catch a typing error


def can_be_tiled(scope: Scope) -> str | None:
    """Applies to inference of workloads that can be cut into tiles."""
    if scope.workload.mode != "inference":  # no tile sizes are known there, whatever the workload
        return "only inference is tiled"
    return None if scope.workload.tile_sizes else f"workload {scope.workload.name} cannot be cut into tiles"


def not_a_multiple(scope: Scope, value: Value) -> str | None:
    """The reason why `value` is not a multiple of what the workload's layers need, or None if it is."""
    multiple = scope.workload.tile_multiple
    if int(value) % multiple == 0:
        return None
    below = int(value) // multiple * multiple
    nearest = f"the nearest are {below} and {below + multiple}"
    return f"needs to be a multiple of {multiple} for workload {scope.workload.name}; {nearest}"


def offers(scope: Scope) -> tuple[Value, ...]:
    """The whole input, then the workload's tile sizes that are smaller than it."""
    return (WHOLE, *(size for size in scope.workload.tile_sizes if _too_large(scope, size) is None))


def _too_large(scope: Scope, value: Value) -> str | None:
    resolution = scope.workload.resolution
    if resolution is not None and int(value) >= resolution:
        return f"is not smaller than the input's longer side of {resolution} px; tile_size={WHOLE} runs it whole"
    return None


def check(scope: Scope, value: Value, configuration: Mapping[str, Value]) -> str | None:
    """The reason why tiles of this size cannot be cut, or None if they can."""
    if value == WHOLE:
        return None
    return not_a_multiple(scope, value) or _too_large(scope, value)


def apply(context: ModelContext, value: Value) -> None:
    """Passes the tile size to the workload's inference."""
    context.options["tile_size"] = int(value)


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether the largest convolution input of the profiled step is a tile or, for the baseline, the whole input."""
    chosen = context.options.get("tile_size")
    if chosen != value:
        return EvidenceResult(False, f"the workload received tile_size {chosen}")
    trace = recorded(context)
    if isinstance(trace, EvidenceResult):
        return trace
    inputs = [each.operator.shapes[0] for each in convolutions(trace)]
    sides = [max(shape[2:][-2:]) for shape in inputs if len(shape) > 2]  # not the frames of a video
    if not sides:
        words = "the profiled step has no convolution input that shows the tile size"
        if value == WHOLE:
            return EvidenceResult(True, f"the workload received tile_size {WHOLE}; {words}")
        return EvidenceResult(None, words)
    largest = max(sides)
    words = f"the longest side of a convolution's input was {largest} px"
    if value == WHOLE:
        given = max(
            (max(tensor.shape[2:][-2:], default=0) for batch in context.batches for tensor in tensors(batch)), default=0
        )
        whole = context.workload.resolution or given
        return EvidenceResult(largest >= whole, f"{words}, the whole input's is {whole} px")
    # Models that pad before a convolution show a pixel or two more than the tile.
    slack = context.workload.tiling.multiple if context.workload.tiling else 1
    return EvidenceResult(largest < int(value) + slack, f"{words}, the tile's is {value} px")


TILE_SIZE = Toggle(
    name="tile_size",
    summary="Side of the square (or cubic) tiles that inference runs on, in pixels of the full-resolution side.",
    values={WHOLE: "the whole input at once"},
    stage=Stage.PROBLEM,
    applies=can_be_tiled,
    offers=offers,
    integers=Integers(
        low=WHOLE, high=LARGEST, meaning="0 for the whole input, or a multiple of what the workload's layers need"
    ),
    check=check,
    apply=apply,
    evidence=evidence,
    usage=lambda value, _: (
        f'options["tile_size"] = {value}  # for the workload\'s infer: tiles of {value} px, blended'
        if value
        else 'options["tile_size"] = 0  # for the workload\'s infer: no tiles'
    ),
    changes_problem=True,
    magnitude=lambda value: math.inf if value == WHOLE else int(value),
    claims=("vae-guide", "cytodl"),
    source="the workload's own tiled inference",
)
