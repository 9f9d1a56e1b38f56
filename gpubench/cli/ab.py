"""`gpubench ab`: did this change, or this upgrade, make it slower? Both sides here and now, in interleaved rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpubench.cli import options as o
from gpubench.cli.verdict_output import CheckFormat, InconclusiveOk, exit_code, show

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
            help="The side to compare with: a Python interpreter, FILE.py:NAME, or a git revision of WORKLOAD's file.",
            rich_help_panel=SIDES,
        ),
    ] = ".",
    b: Annotated[
        str,
        typer.Option(
            "--b",
            metavar="SIDE",
            help="The side that is judged, named the same way; '.' is this interpreter and WORKLOAD as it is.",
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
        typer.Option("--set", metavar="TOGGLE=V1,V2", help="Values to compare as further rows; may be repeated."),
    ] = None,
    fix: o.Fix = None,
    max_slowdown: Annotated[
        str,
        typer.Option("--max-slowdown", metavar="SHARE", help="Smallest slowdown that fails."),
    ] = "2.5%",
    max_memory_growth: Annotated[
        str, typer.Option("--max-memory-growth", metavar="SHARE", help="Smallest growth of the peak memory that fails.")
    ] = "2%",
    rounds: Annotated[
        int,
        typer.Option("--rounds", min=5, max=1000, help="Rounds before the first decision.", rich_help_panel=o.RUN),
    ] = 5,
    time_limit: Annotated[
        str,
        typer.Option(
            "--time-limit",
            metavar="TIME",
            help="Time limit per row: rounds go on until it is decided or this is over, but at least 5.",
            rich_help_panel=o.RUN,
        ),
    ] = "60s",
    pair: Annotated[
        o.PairName,
        typer.Option(
            "--pair",
            help="process: both sides in one process where they can share it; round: one process each.",
            rich_help_panel=o.RUN,
        ),
    ] = "process",
    timeout: o.Timeout = "10min",
    seed: o.Seed = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FOLDER",
            help="Folder of a.json and b.json. Default: gpubench-runs/<device>/ab-<workload>-<mode>-<UTC time>.",
            rich_help_panel=o.OUTPUT,
        ),
    ] = None,
    format_: Annotated[
        CheckFormat, typer.Option("--format", help="Format of standard output.", rich_help_panel=o.OUTPUT)
    ] = "table",
    inconclusive_ok: InconclusiveOk = False,
    quiet: o.Quiet = False,
) -> int:
    """Measure two interpreters, workloads or revisions against each other, in interleaved rounds on this machine.

    Exit codes: 0 fine, 1 side b is worse, 2 wrong usage, 3 not comparable, 4 inconclusive.
    """
    from gpubench import api
    from gpubench.cli.default_paths import new_path
    from gpubench.cli.measuring import fields_of, say, told_where
    from gpubench.cli.progress import listener
    from gpubench.errors import GpubenchError
    from gpubench.units import parse_duration, parse_share

    options = dict(ctx.params)
    slowdown, growth = (parse_share(options.pop(name)) for name in ("max_slowdown", "max_memory_growth"))
    inconclusive_ok = options.pop("inconclusive_ok")
    time_limit_s = parse_duration(options.pop("time_limit"))
    with listener(quiet) as progress, told_where(progress):
        result = api.ab(
            **fields_of(options),
            limits=api.Limits(slowdown=slowdown, memory_growth=growth),
            time_limit_s=time_limit_s,
            output=output or new_path,
            listener=progress,
        )
    show([result.check], format_, inconclusive_ok)
    if result.unsaved:
        raise GpubenchError(f"The reports could not be saved: {result.unsaved}", "The verdict is printed above.")
    if not quiet:
        say(f"Reports: {progress.path}")
    return exit_code([result.check.verdict], inconclusive_ok)
