"""`gpubench compare-opts`: which settings are fastest here."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gpubench.cli.options import PairName, measuring, renamed, run_option


@measuring()
def compare_opts(
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="NAME|FILE",
            help="What to try: default, quick, full, memory, input, a guide of `gpubench claims`, or a TOML file.",
        ),
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
    final_rounds: Annotated[
        int | None,
        run_option(
            "--final-rounds",
            min=0,
            max=1000,
            help="Rounds that measure the recommended configuration against the baseline on fresh data; 0: no runoff "
            "and no final. Default: 6, or as many as fit in 60 s.",
        ),
    ] = None,
    duel_rounds: Annotated[
        int | None,
        typer.Option("--duel-rounds", min=0, max=1000, hidden=True, help="The former name of --final-rounds."),
    ] = None,
    pair: Annotated[
        PairName,
        typer.Option("--pair", hidden=True, help="Has no effect: each configuration has a process of its own."),
    ] = "process",
    **options: Any,
) -> int:
    """Measure settings on a model and recommend the best.

    First the baseline, each toggle alone, and the toggles added one by one.
    Then the fastest in a runoff, and the winner against the baseline in a
    final on fresh data.
    """
    from gpubench.cli.measuring import run
    from gpubench.cli.reports import tell

    if pair != "process" and not options["quiet"]:
        tell("--pair has no effect: compare-opts gives each configuration a process of its own.")
    options |= {"strategy": strategy, "set_": set_}
    options["preset"] = renamed("matrix", matrix, "preset", preset)
    options["final_rounds"] = renamed("duel_rounds", duel_rounds, "final_rounds", final_rounds)
    return run("compare-opts", options)
