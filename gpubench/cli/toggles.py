"""`gpubench toggles`: the toggles, or one toggle with all its details."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from gpubench.report.model import Value
    from gpubench.toggles.toggle import Toggle


def toggles(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Show this toggle with its values, requirements and code.")
    ] = None,
    workload: Annotated[
        str | None,
        typer.Option(metavar="WORKLOAD", help="Those too that this workload brings with it; its file is imported."),
    ] = None,
    format_: Annotated[Literal["table", "json"], typer.Option("--format", help="Format of standard output.")] = "table",
) -> None:
    """List the toggles in the order in which they are applied, or show one in detail."""
    import json

    from rich.console import Console

    from gpubench.toggles import all_toggles, get, with_own
    from gpubench.workloads.loader import load

    with with_own(load(workload).workload.toggles if workload else ()):
        chosen = [get(name)] if name else list(all_toggles().values())
    if format_ == "json":
        typer.echo(json.dumps([card(toggle) for toggle in chosen], indent=2))
    elif name:
        _print_card(Console(), chosen[0])
    else:
        _print_list(Console(), chosen)


def card(toggle: Toggle) -> dict[str, Any]:
    """A toggle's details, as in JSON."""
    return {
        "name": toggle.name,
        "summary": toggle.summary,
        "stage": toggle.stage.name.lower(),
        "applies": (toggle.applies.__doc__ or "").strip().removeprefix("Applies "),
        "values": [
            {"value": value, "meaning": meaning, "needs": needs(toggle, value), "usage": toggle.usage(value, None)}
            for value, meaning in toggle.values.items()
        ],
        "offers": (toggle.offers.__doc__ or "").strip() if toggle.offers else None,
        "integers": dataclasses.asdict(toggle.integers) if toggle.integers else None,
        "texts": dataclasses.asdict(toggle.texts) if toggle.texts else None,
        "conflicts": [
            {**dataclasses.asdict(each), "other_values": list(each.other_values)} for each in toggle.conflicts
        ],
        "changes_problem": toggle.changes_problem,
        "evidence": (toggle.evidence.__doc__ or "").strip(),
        "claims": list(toggle.claims),
        "source": toggle.source,
    }


def needs(toggle: Toggle, value: Value) -> list[str]:
    """What `value` requires, in words."""
    prerequisites = [
        f"{other}={' or '.join(map(str, allowed))}" for other, allowed in toggle.prerequisites.get(value, {}).items()
    ]
    requirement = toggle.requires.get(value)
    if requirement is None:
        return prerequisites
    capability, version = requirement.compute_capability, requirement.torch_version
    words = [
        f"a {requirement.device_kinds[0].upper()} device" if len(requirement.device_kinds) == 1 else "",
        f"{requirement.modes[0]}" if len(requirement.modes) == 1 else "",
        f"compute capability {capability[0]}.{capability[1]} (CUDA)" if capability else "",
        f"{requirement.fast_dtype} arithmetic in hardware" if requirement.fast_dtype else "",
        f"torch {version[0]}.{version[1]}" if version else "",
        (requirement.check.__doc__ or "").strip().rstrip(".") if requirement.check else "",
        requirement.why,
    ]
    return [*filter(None, words), *prerequisites]


def _print_list(console: Console, chosen: list[Toggle]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("toggle", "stage"):
        table.add_column(column, no_wrap=True)
    table.add_column("values, baseline first", overflow="fold")
    table.add_column("what it is", overflow="fold")
    for toggle in chosen:
        numbers = (f"{toggle.integers.low}..{toggle.integers.high}",) if toggle.integers else ()
        texts = (f"or {toggle.texts.example}",) if toggle.texts else ()
        values = ", ".join(map(str, (*toggle.values, *numbers, *texts)))
        cells = (toggle.name, toggle.stage.name.lower(), values, toggle.summary)
        table.add_row(*map(escape, cells))
    console.print(table)
    _line(console, "\n`gpubench toggles NAME` shows one with its requirements, evidence and code.")


def _line(console: Console, text: str) -> None:
    # A toggle may come from another distribution: its text is printed as it is, never as markup.
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _print_card(console: Console, toggle: Toggle) -> None:
    facts = card(toggle)
    _line(console, f"{toggle.name}: {toggle.summary}\n")
    _line(console, f"stage      {facts['stage']}{' (changes what is computed)' if toggle.changes_problem else ''}")
    _line(console, f"applies    {facts['applies']}")
    if facts["offers"]:
        _line(console, f"offers     {facts['offers']}")
    if toggle.integers:
        _line(console, f"numbers    {toggle.integers.low} to {toggle.integers.high}: {toggle.integers.meaning}")
    if toggle.texts:
        _line(console, f"texts      {toggle.texts.meaning}")
    _line(console, f"evidence   {facts['evidence']}")
    _line(console, f"claims     {', '.join(toggle.claims)} (docs/claims.md)" if toggle.claims else "claims     none")
    _line(console, f"source     {toggle.source}")
    for each in facts["conflicts"]:
        others = ", ".join(map(str, each["other_values"]))
        _line(console, f"conflict   {each['value']} with {each['other']}={others}: {each['reason']}")
    for index, each in enumerate(facts["values"]):
        _line(console, f"\n{each['value']}{' (baseline)' if index == 0 else ''}: {each['meaning']}")
        if each["needs"]:
            _line(console, f"  needs {'; '.join(each['needs'])}")
        for line in each["usage"].splitlines():
            _line(console, f"    {line}")
    if toggle.texts:
        _line(console, f"\n{toggle.texts.example}:")
        for line in toggle.usage(toggle.texts.example, None).splitlines():
            _line(console, f"    {line}")
    if not facts["values"] and toggle.integers:
        _line(console, f"\n    {toggle.usage(toggle.integers.low, None)}")
