"""`gpubench batch-sweep` and `gpubench tile-sweep`: one size after the other; one that does not fit ends nothing."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gpubench.cli.options import measuring, split_numbers

DEFAULT_BATCHES = ["1", "2", "4", "8", "16", "32"]


@measuring(without=["batch_size"], rounds=3)
def batch_sweep(
    sizes: Annotated[
        list[str] | None, typer.Option("--sizes", metavar="N N ...", help="Batch sizes: 1 2 4 8, or 1,2,4,8.")
    ] = None,
    **options: Any,
) -> int:
    """Measure batch sizes: the knee (smallest within 5 % of the best FPS) and the largest that fits."""
    from gpubench.cli.measuring import run

    values = split_numbers(sizes or DEFAULT_BATCHES, "--sizes")
    return run("batch-sweep", options, sweep="batch_size", values=values)


@measuring(without=["mode"], rounds=3)
def tile_sweep(
    sizes: Annotated[
        list[str] | None,
        typer.Option("--sizes", metavar="N N ...", help="Tile sizes in pixels per side; 0 is the whole image."),
    ] = None,
    overlaps: Annotated[
        list[str] | None, typer.Option("--overlaps", metavar="N N ...", help="Overlaps between tiles in pixels.")
    ] = None,
    **options: Any,
) -> int:
    """Measure tile sizes and overlaps of a workload that can be tiled: speed versus memory."""
    from gpubench.cli.measuring import run

    if not (options["workload"] or options["workload_option"]):
        options["workload"] = "vae"
    values = split_numbers(sizes, "--sizes") if sizes else ()
    also = {"tile_overlap": split_numbers(overlaps, "--overlaps")} if overlaps else {}
    return run("tile-sweep", options, mode="inference", sweep="tile_size", values=values, also=also)
