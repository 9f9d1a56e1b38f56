"""`gpubench batch-sweep` and `gpubench tile-sweep`: one size after the other; one that does not fit ends nothing."""

from __future__ import annotations

from typing import Annotated

import typer

from gpubench.cli import options as o

DEFAULT_BATCHES = ["1", "2", "4", "8", "16", "32"]


def batch_sweep(
    ctx: typer.Context,
    workload: o.WorkloadArgument = None,
    workload_option: o.WorkloadOption = None,
    sizes: Annotated[
        list[str] | None, typer.Option("--sizes", metavar="N N ...", help="Batch sizes: 1 2 4 8, or 1,2,4,8.")
    ] = None,
    mode: o.Mode = None,
    size: o.Size = "auto",
    param: o.Parameters = None,
    resolution: o.Resolution = None,
    device: o.Device = "auto",
    fix: o.Fix = None,
    objective: o.Objective = "fps",
    max_memory: o.MaxMemory = None,
    timeout: o.Timeout = "10min",
    rounds: o.Rounds = 3,
    strict: o.Strict = False,
    allow: o.Allow = None,
    seed: o.Seed = 0,
    resume: o.Resume = False,
    dry_run: o.DryRun = False,
    output: o.Output = None,
    format_: o.Format = "table",
    quiet: o.Quiet = False,
) -> int:
    """Measure batch sizes: the knee (smallest within 5 % of the best FPS) and the largest that fits."""
    from gpubench.cli.measuring import run

    options = {name: value for name, value in ctx.params.items() if name != "sizes"}
    values = tuple(o.split_numbers(sizes or DEFAULT_BATCHES, "--sizes"))
    return run("batch-sweep", options, sweep="batch_size", values=values)


def tile_sweep(
    ctx: typer.Context,
    workload: o.WorkloadArgument = None,
    workload_option: o.WorkloadOption = None,
    sizes: Annotated[
        list[str] | None,
        typer.Option("--sizes", metavar="N N ...", help="Tile sizes in pixels per side; 0 is the whole image."),
    ] = None,
    overlaps: Annotated[
        list[str] | None, typer.Option("--overlaps", metavar="N N ...", help="Overlaps between tiles in pixels.")
    ] = None,
    size: o.Size = "auto",
    param: o.Parameters = None,
    resolution: o.Resolution = None,
    batch_size: o.BatchSize = None,
    device: o.Device = "auto",
    fix: o.Fix = None,
    objective: o.Objective = "fps",
    max_memory: o.MaxMemory = None,
    timeout: o.Timeout = "10min",
    rounds: o.Rounds = 3,
    strict: o.Strict = False,
    allow: o.Allow = None,
    seed: o.Seed = 0,
    resume: o.Resume = False,
    dry_run: o.DryRun = False,
    output: o.Output = None,
    format_: o.Format = "table",
    quiet: o.Quiet = False,
) -> int:
    """Measure tile sizes and overlaps of a workload that can be tiled: speed versus memory."""
    from gpubench.cli.measuring import run

    options = {name: value for name, value in ctx.params.items() if name not in ("sizes", "overlaps")}
    if not (workload or workload_option):
        options["workload"] = "vae"
    values = tuple(o.split_numbers(sizes, "--sizes")) if sizes else ()
    also = {"tile_overlap": o.split_numbers(overlaps, "--overlaps")} if overlaps else {}
    return run("tile-sweep", options, mode="inference", sweep="tile_size", values=values, also=also)
