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
    preset: Annotated[
        str | None,
        typer.Option("--preset", metavar="NAME|FILE", help="What to try: default, quick, full, or a TOML file."),
    ] = None,
    matrix: Annotated[str | None, typer.Option("--matrix", hidden=True, help="The former name of --preset.")] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            "--strategy",
            metavar="NAME",
            help="ladder: each toggle alone, then added one by one; each: alone only; grid: every combination. "
            "Default: the preset's.",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="TOGGLE=V1,V2",
            help="Values to try. Without --preset, only these toggles are tried; may be repeated.",
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
            min=0,
            max=1000,
            help="Rounds that measure the recommended configuration against the baseline on fresh data; 0: no runoff "
            "and no final. Default: 6, or as many as fit in 60 s.",
            rich_help_panel=o.RUN,
        ),
    ] = None,
    duel_rounds: Annotated[
        int | None,
        typer.Option("--duel-rounds", min=0, max=1000, hidden=True, help="The former name of --final-rounds."),
    ] = None,
    pair: Annotated[
        o.PairName,
        typer.Option("--pair", hidden=True, help="Has no effect: each configuration has a process of its own."),
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
    """Measure settings on a model and recommend the best.

    First the baseline, each toggle alone, and the toggles added one by one.
    Then the fastest in a runoff, and the winner against the baseline in a
    final on fresh data.
    """
    from gpubench.cli.measuring import run, say

    if pair != "process" and not quiet:
        say("--pair has no effect: compare-opts gives each configuration a process of its own.")
    options = dict(ctx.params)
    del options["pair"]
    for old, new in (("matrix", "preset"), ("duel_rounds", "final_rounds")):
        options[new] = o.renamed(old, options.pop(old), new, options[new])
    return run("compare-opts", options)
