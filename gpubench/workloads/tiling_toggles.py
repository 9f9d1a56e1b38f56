"""What tiled workloads may do in two ways: the toggles `tile_contiguity`, `tile_ramp`, `tile_blend`, ....

A guide for video autoencoders promises a gain from each of them. The first value, the baseline, is the fast way that
the promise is about, since tiled workloads here always work so: a report of `tile_size` means what it meant before
these toggles were there, and whoever tiles gets the fast way unasked. The other value is what plain code does instead.
Its row's speed-up, below 1 where the promise holds, tells the gain; `--fix` holds it, to measure the fast way against.
"""

from __future__ import annotations

from collections.abc import Mapping

from gpubench.report.model import Value
from gpubench.text import plural
from gpubench.toggles import bundled_toggles
from gpubench.toggles.model_context import ModelContext
from gpubench.toggles.toggle import Conflict, EvidenceResult, Requirement, Scope, Stage, Toggle
from gpubench.workloads import tiling


def _tiles(scope: Scope) -> str | None:
    """Applies to inference."""
    return None if scope.workload.mode == "inference" else "only inference is tiled"


def _toggle(field: str, summary: str, values: Mapping[Value, str]) -> Toggle:
    name = f"tile_{field}"

    def evidence(context: ModelContext, value: Value) -> EvidenceResult:
        """Whether the tiled code, which counts what it does, did this with every tile."""
        if not context.options.get("tile_size"):
            return EvidenceResult(True, "the whole input is one tile, with nothing to blend")
        counts = {way: tiling.ran[field, str(way)] for way in values}
        words = " and ".join(f"{plural(count, 'tile')} {way}" for way, count in counts.items() if count)
        return EvidenceResult(
            set(filter(counts.get, counts)) == {value}, f"{name} in this process: {words or 'no tiles'}"
        )

    return Toggle(
        name=name,
        summary=summary,
        values=values,
        stage=Stage.PROBLEM,
        is_plain=False,
        applies=_tiles,
        idle_when={"tile_size": (0,)},
        usage=lambda value, _: f'options["{name}"] = "{value}"  # for the workload\'s infer',
        evidence=evidence,
        claims=("vae-guide",),
        source="the workload's own tiled inference",
    )


TILING_TOGGLES = (
    _toggle(
        "contiguity",
        "Whether a tile is copied out of the whole before the model gets it.",
        {"contiguous": "a copy in dense memory", "views": "a part of the whole, with gaps between its rows"},
    ),
    _toggle(
        "ramp",
        "When the ramps are computed along which tiles are blended.",
        {"cached": "once in a process", "computed": "for every tile"},
    ),
    _toggle(
        "blend",
        "How a tile is multiplied by its weights.",
        {"separable": "by a ramp for one side after the other", "mask": "by the product of its ramps"},
    ),
    _toggle(
        "arithmetic",
        "Whether products and sums of tiles get new memory.",
        {"in_place": "sums are added to, later products overwrite the first", "allocating": "each is a new tensor"},
    ),
    _toggle(
        "output",
        "Where the tiles are added up.",
        {"preallocated": "in one output", "per_tile": "each in an output of its own, which are added one by one"},
    ),
)


def _batch_evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether each call of the tiled function, which counts them, had so many tiles."""
    if not context.options.get("tile_size"):
        return EvidenceResult(True, "the whole input is one tile")
    found = sorted({tiles for tiles, _ in tiling.called})
    words = " or ".join(plural(tiles, "tile") for tiles in found) or "no tiles"
    return EvidenceResult(found == [value], f"calls of the model in this process had {words}")


def _streams_evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether the calls of the tiled function, which notes its stream, ran on so many streams."""
    if not context.options.get("tile_size"):
        return EvidenceResult(True, "the whole input is one tile")
    found = {stream for _, stream in tiling.called}
    return EvidenceResult(len(found) == value, f"tiles of this process ran on {plural(len(found), 'CUDA stream')}")


def _tiles_on_cuda(scope: Scope) -> str | None:
    """Applies to inference on a CUDA device."""
    if scope.device.kind != "cuda":
        return f"streams are CUDA's, this is {scope.device.name}"
    return _tiles(scope)


_GRAPHS = {name: toggle.replays_graphs for name, toggle in bundled_toggles().items() if toggle.replays_graphs}

TILE_BATCH = Toggle(
    name="tile_batch",
    summary="Tiles that go through the model in one call.",
    values={1: "one after another", 2: "2 at once", 4: "4 at once"},
    stage=Stage.PROBLEM,
    applies=_tiles,
    idle_when={"tile_size": (0,)},
    conflicts=tuple(
        Conflict(
            value=count,
            other="tile_contiguity",
            other_values=("views",),
            reason="several tiles are put together by a copy",
        )
        for count in (2, 4)
    ),
    usage=lambda value, _: f'options["tile_batch"] = {value}  # for the workload\'s infer',
    evidence=_batch_evidence,
    source="sw_batch_size of sliding_window_inference in MONAI (Cardoso et al., 2022)",
)

TILE_STREAMS = Toggle(
    name="tile_streams",
    summary="CUDA streams on which calls of the model for tiles run at a time.",
    values={1: "one after another", 2: "2 streams in turn", 4: "4 streams in turn"},
    stage=Stage.PROBLEM,
    applies=_tiles_on_cuda,
    requires={count: Requirement(device_kinds=("cuda",)) for count in (1, 2, 4)},
    idle_when={"tile_size": (0,)},
    conflicts=tuple(
        Conflict(
            value=count,
            other=other,
            other_values=values,
            reason="a CUDA graph has one memory for its outputs, which calls under way at a time would share",
        )
        for count in (2, 4)
        for other, values in _GRAPHS.items()
    ),
    usage=lambda value, _: f'options["tile_streams"] = {value}  # for the workload\'s infer',
    evidence=_streams_evidence,
    claims=("vae-guide",),
    source="PyTorch documentation: CUDA semantics, CUDA streams",
)

TILE_CALLS = (TILE_BATCH, TILE_STREAMS)
