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
from gpubench.toggles.model_context import ModelContext
from gpubench.toggles.toggle import EvidenceResult, Scope, Stage, Toggle
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
