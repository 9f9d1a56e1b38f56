"""`gpubench ab`: did this change, or this upgrade, make it slower? Both sides here and now, in interleaved rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gpubench.cli.options import PairName, measuring, output_option, run_option
from gpubench.cli.reports import InconclusiveOk, emit, exit_code, tell, text_of
from gpubench.render.formats import CheckFormat

SIDES = "Sides"


@measuring(without=["objective", "max_memory", "strict", "allow", "resume", "dry_run"])
def ab(
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
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="TOGGLE=V1,V2", help="Values to compare as further rows; may be repeated."),
    ] = None,
    max_slowdown: Annotated[
        str, typer.Option("--max-slowdown", metavar="SHARE", help="Smallest slowdown that fails.")
    ] = "2.5%",
    max_memory_growth: Annotated[
        str, typer.Option("--max-memory-growth", metavar="SHARE", help="Smallest growth of the peak memory that fails.")
    ] = "2%",
    rounds: Annotated[int, run_option("--rounds", min=5, max=1000, help="Rounds before the first decision.")] = 5,
    time_limit: Annotated[
        str,
        run_option(
            "--time-limit",
            metavar="TIME",
            help="Time limit per row: rounds go on until it is decided or this is over, but at least 5.",
        ),
    ] = "60s",
    pair: Annotated[
        PairName,
        run_option(
            "--pair", help="process: both sides in one process where they can share it; round: one process each."
        ),
    ] = "process",
    output: Annotated[
        Path | None,
        output_option(
            "--output",
            metavar="FOLDER",
            help="Folder of a.json and b.json. Default: gpubench-runs/<device>/ab-<workload>-<mode>-<UTC time>.",
        ),
    ] = None,
    format_: Annotated[CheckFormat, output_option("--format", help="Format of standard output.")] = "table",
    inconclusive_ok: InconclusiveOk = False,
    **options: Any,
) -> int:
    """Measure two interpreters, workloads or revisions against each other, in interleaved rounds on this machine.

    Exit codes: 0 fine, 1 side b is worse, 2 wrong usage, 3 not comparable, 4 inconclusive.
    """
    from gpubench import api
    from gpubench.cli.measuring import fields_of, new_path, told_where
    from gpubench.cli.progress import listener
    from gpubench.errors import GpubenchError
    from gpubench.units import parse_duration, parse_share

    quiet = options["quiet"]
    limits = api.Limits(slowdown=parse_share(max_slowdown), memory_growth=parse_share(max_memory_growth))
    time_limit_s = parse_duration(time_limit)
    fields = fields_of({**options, "set_": set_})
    with listener(quiet) as progress, told_where(progress):
        result = api.ab(
            a,
            b,
            **fields,
            limits=limits,
            rounds=rounds,
            time_limit_s=time_limit_s,
            pair=pair,
            output=output or new_path,
            listener=progress,
        )
    emit(text_of([result.check], format_, inconclusive_ok))
    if result.unsaved:
        raise GpubenchError(f"The reports could not be saved: {result.unsaved}", "The verdict is printed above.")
    if not quiet:
        tell(f"Reports: {progress.path}")
    return exit_code([result.check.verdict], inconclusive_ok)
