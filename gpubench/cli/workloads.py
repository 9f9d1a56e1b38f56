"""`gpubench workloads`: the bundled workloads, or one with its parameters."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from gpubench.errors import unknown_name
from gpubench.text import printable


def workloads(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Show this workload with its parameters.")
    ] = None,
    format_: Annotated[Literal["table", "json"], typer.Option("--format", help="Format of standard output.")] = "table",
) -> None:
    """List the workloads that have a name, or show one with its parameters."""
    import json

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from gpubench.workloads.catalog import names, origin, summary

    if name is not None and name not in names():
        raise unknown_name("workload", name, names(), "Measure your own with FILE.py:NAME; see examples/.")
    chosen = [name] if name else list(names())
    if format_ == "json":
        facts = [
            {"name": one, "summary": summary(one), "distribution": origin(one), **(_details(one) if name else {})}
            for one in chosen
        ]
        typer.echo(json.dumps(facts, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("workload", no_wrap=True)
    table.add_column("from", no_wrap=True)
    table.add_column("what it is")
    for one in chosen:
        table.add_row(*(escape(printable(text)) for text in (one, origin(one), summary(one))))
    console = Console()
    console.print(table)
    if name:
        for parameter, text in _details(name)["parameters"].items():
            option = {"size": "--size", "resolution": "--resolution"}.get(parameter, f"--param {parameter}=")
            console.print(f"  {option}  {text}", markup=False, highlight=False)
    else:
        console.print("\nYour own: FILE.py:NAME or package.module:NAME, see examples/my_model.py.", highlight=False)


def _details(name: str) -> dict[str, dict[str, str]]:
    """The parameters of the workload's function. Imports torch, so only for a workload asked for by name."""
    import inspect

    from gpubench.workloads.source import find

    function = find(name).target
    parameters = inspect.signature(function).parameters.values() if callable(function) else ()
    return {"parameters": {each.name: f"{each.annotation}, default {each.default}" for each in parameters}}
