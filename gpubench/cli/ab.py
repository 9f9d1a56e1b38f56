"""`gpubench ab`: did this change, or this upgrade, make it slower? Both sides here and now, in interleaved rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpubench.cli import options as o
from gpubench.cli.verdict_output import CheckFormat, InconclusiveOk

SIDES = "Sides"


def ab(
    ctx: typer.Context,
    workload: o.WorkloadArgument = None,
    workload_option: o.WorkloadOption = None,
    a: Annotated[
        str,
        typer.Option(
            "--a",
            metavar="SIDE",
            help="What to compare with: a Python interpreter, FILE.py:NAME, or a git revision of WORKLOAD's file.",
            rich_help_panel=SIDES,
        ),
    ] = ".",
    b: Annotated[
        str,
        typer.Option(
            "--b",
            metavar="SIDE",
            help="What is judged: the same choices; '.' is this interpreter and WORKLOAD as it is.",
            rich_help_panel=SIDES,
        ),
    ] = ".",
    mode: o.Mode = None,
    size: o.Size = "auto",
    param: o.Parameters = None,
    resolution: o.Resolution = None,
    batch_size: o.BatchSize = None,
    device: o.Device = "auto",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="TOGGLE=V1,V2", help="Further rows, one a value; may be repeated."),
    ] = None,
    fix: o.Fix = None,
    max_slowdown: Annotated[
        str,
        typer.Option("--max-slowdown", metavar="SHARE", help="Half of the slowdown that must not be missed."),
    ] = "2.5%",
    max_memory_growth: Annotated[
        str, typer.Option("--max-memory-growth", metavar="SHARE", help="Of the peak memory.")
    ] = "2%",
    rounds: Annotated[
        int,
        typer.Option("--rounds", min=5, max=1000, help="Decide after so many, if it can be.", rich_help_panel=o.RUN),
    ] = 5,
    time_limit: Annotated[
        str,
        typer.Option(
            "--time-limit",
            metavar="TIME",
            help="Of a row: go on for so long where it is not decided; end then, but not before 5 rounds.",
            rich_help_panel=o.RUN,
        ),
    ] = "60s",
    pair: Annotated[
        o.PairName,
        typer.Option("--pair", help="Inside one process where both can share it, or one each.", rich_help_panel=o.RUN),
    ] = "process",
    timeout: o.Timeout = "10min",
    seed: o.Seed = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FOLDER",
            help="Where a.json and b.json go. Default: gpubench-runs/<device>/ab-<workload>-<mode>-<UTC time>.",
            rich_help_panel=o.OUTPUT,
        ),
    ] = None,
    format_: Annotated[
        CheckFormat, typer.Option("--format", help="What goes to standard output.", rich_help_panel=o.OUTPUT)
    ] = "table",
    inconclusive_ok: InconclusiveOk = False,
    quiet: o.Quiet = False,
) -> int:
    """Measure two interpreters, workloads or revisions against each other, in interleaved rounds on this machine.

    Exit codes: 0 fine, 1 side b is worse, 2 wrong usage, 3 not comparable, 4 not decided in time.
    """
    from gpubench.cli.run_ab import run

    return run(dict(ctx.params))
