"""Writes docs/cli.md from the commands' own help. `--check`: fails where the file is not what it would write.

python scripts/write_cli_reference.py [--check]
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from typer.models import ArgumentInfo, ParameterInfo

from gpubench.cli.main import app

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
HEAD = "# Commands\n\nMade from the commands' help by `scripts/write_cli_reference.py`; do not edit it by hand.\n"


def page() -> str:
    """The whole page."""
    commands = [(each.name, each.callback) for each in app.registered_commands]
    return "\n".join([HEAD, *(section(name, command) for name, command in commands if name and command)])


def section(name: str, command: Callable[..., Any]) -> str:
    """A command with its arguments and options."""
    rows, usage = [], ["gpubench", name]
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        kind, *infos = get_args(parameter.annotation) or (None,)
        info = next((each for each in infos if isinstance(each, ParameterInfo)), None)
        if info is None or info.hidden:
            continue
        if isinstance(info, ArgumentInfo):
            usage.append(called(info, kind))
        rows.append(f"| `{cell(called(info, kind))}` | {cell(info.help or '')} | {default(parameter.default)} |")
    lines = [f"## gpubench {name}", "", paragraphs(inspect.getdoc(command) or ""), "", f"`{' '.join(usage)}`", ""]
    return "\n".join([*lines, *table(rows)])


def table(rows: list[str]) -> list[str]:
    """The rows below their heading; nothing without rows."""
    return ["| argument or option | meaning | default |", "| --- | --- | --- |", *rows, ""] if rows else []


def called(info: ParameterInfo, kind: Any) -> str:
    """`--device TEXT`, `--mode inference|training`, `--quiet`, or an argument's name."""
    if isinstance(info, ArgumentInfo):
        return str(info.metavar)
    kinds = [each for each in (get_args(kind) or (kind,)) if each is not type(None)]
    choices = get_args(kind) if get_origin(kind) is Literal else get_args(kinds[0])
    words = "|".join(map(str, choices)) if choices and info.metavar is None else info.metavar
    # Where the default stands after the annotation, typer keeps the first name in `default`.
    names = ", ".join([str(info.default), *(info.param_decls or ())])
    return names if bool in kinds else f"{names} {words or ('N' if int in kinds else 'TEXT')}"


def default(value: Any) -> str:
    """The default as text; empty where there is none, or it is a flag that is off."""
    return "" if value is None or value is False or value is inspect.Parameter.empty else f"`{value}`"


def cell(text: str) -> str:
    """`text` in a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def paragraphs(text: str) -> str:
    """`text` with each paragraph on one line."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


if __name__ == "__main__":
    if sys.argv[1:] != ["--check"]:
        PAGE.write_text(page())
    elif not PAGE.exists() or PAGE.read_text() != page():
        sys.exit("docs/cli.md is not what the commands' help says: run scripts/write_cli_reference.py")
