"""What `check` and `ab` share: how verdicts are printed, and the exit code that they come to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
import typer

from gpubench.analysis.verdicts import Check, Verdict
from gpubench.cli.reports import emit
from gpubench.errors import EXIT_INCOMPARABLE, EXIT_INCONCLUSIVE, EXIT_OK, EXIT_REGRESSION

CheckFormat = Literal["table", "json", "markdown", "junit", "github"]
InconclusiveOk = Annotated[
    bool, typer.Option("--inconclusive-ok", help="Exit code 0 where nothing is worse but not all could be told.")
]


def exit_code(verdicts: Sequence[Verdict], inconclusive_ok: bool) -> int:
    """Of all checks: a regression outweighs what cannot be compared, and that what cannot be told."""
    found = set(verdicts)
    if "regressed" in found:
        return EXIT_REGRESSION
    if "incomparable" in found:
        return EXIT_INCOMPARABLE
    return EXIT_INCONCLUSIVE if "inconclusive" in found and not inconclusive_ok else EXIT_OK


def as_json(checks: Sequence[Check]) -> bytes:
    """The checks as an indented JSON array with a final newline."""
    return msgspec.json.format(msgspec.json.encode(checks), indent=2) + b"\n"


def show(checks: Sequence[Check], format_: CheckFormat, inconclusive_ok: bool) -> None:
    """Prints the checks on standard output."""
    if format_ == "json":
        emit(as_json(checks).decode())
    elif format_ == "markdown":
        from gpubench.render.check_markdown import check_markdown

        emit(check_markdown(checks))
    elif format_ == "junit":
        from gpubench.render.junit import junit

        emit(junit(checks, inconclusive_ok))
    elif format_ == "github":
        from gpubench.render.github import github

        emit(github(checks))
    else:
        from rich.console import Console

        from gpubench.render.check_table import show as show_table

        console = Console(highlight=False)
        for index, one in enumerate(checks):
            if index:
                console.print()
            show_table(console, one)
