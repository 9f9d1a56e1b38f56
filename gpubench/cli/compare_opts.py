"""`gpubench compare-opts`: which settings are fastest here."""

from __future__ import annotations

from typing import Annotated

import typer

from gpubench.cli import options as o


def compare_opts(
    ctx: typer.Context,
    workload: o.WorkloadArgument = None,
    workload_option: o.WorkloadOption = None,
    mode: o.Mode = None,
    size: o.Size = "auto",
    param: o.Parameters = None,
    resolution: o.Resolution = None,
    batch_size: o.BatchSize = None,
    device: o.Device = "auto",
    matrix: Annotated[
        str | None,
        typer.Option("--matrix", metavar="NAME|FILE", help="What to try: default, quick, full, or a TOML file."),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option("--strategy", help="Alone and cumulative, alone only, or every combination."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="TOGGLE=V1,V2",
            help="Values to try. Without --matrix, only the toggles named so are tried; may be repeated.",
        ),
    ] = None,
    fix: o.Fix = None,
    objective: o.Objective = "fps",
    max_memory: o.MaxMemory = None,
    timeout: o.Timeout = "10min",
    rounds: o.Rounds = 1,
    final_rounds: Annotated[
        int | None,
        typer.Option(
            "--final-rounds",
            "--duel-rounds",
            min=0,
            max=1000,
            help="Rounds in which the baseline and the choice meet on fresh data; 0: neither runoff nor final. "
            "Default: 6, but for no longer than 60 s.",
            rich_help_panel=o.RUN,
        ),
    ] = None,
    pair: Annotated[
        o.PairName,
        typer.Option(
            "--pair",
            help="Runoff and final: inside one process where two configurations can share it, or one process each.",
            rich_help_panel=o.RUN,
        ),
    ] = "process",
    strict: o.Strict = False,
    allow: o.Allow = None,
    seed: o.Seed = 0,
    resume: o.Resume = False,
    dry_run: o.DryRun = False,
    output: o.Output = None,
    format_: o.Format = "table",
    quiet: o.Quiet = False,
) -> int:
    """Measure a matrix of settings on a model and recommend the best.

    The default matrix is a ladder: the baseline, each technique alone, then the techniques one upon the other, and
    at last the leaders race, and the one chosen meets the baseline in a final on fresh data.
    """
    from gpubench.cli.planning import request_of
    from gpubench.cli.run import run

    return run(request_of("compare-opts", ctx.params))
