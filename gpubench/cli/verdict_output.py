"""What `check` and `ab` share: how verdicts are printed, and the exit code that they come to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer

from gpubench.cli.reports import emit
from gpubench.errors import EXIT_INCOMPARABLE, EXIT_INCONCLUSIVE, EXIT_OK, EXIT_REGRESSION, GpubenchError
from gpubench.regression.verdicts import Check, Verdict
from gpubench.text import printable

CheckFormat = Literal["table", "json", "markdown", "junit", "github"]
ENDINGS: dict[str, CheckFormat] = {".json": "json", ".md": "markdown", ".xml": "junit"}
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


def as_file(path: Path) -> tuple[Path, CheckFormat]:
    """The file with the format that its ending names. Raises GpubenchError for another ending."""
    if (found := ENDINGS.get(path.suffix.lower())) is None:
        raise GpubenchError(
            f"--output {printable(str(path))} has none of the endings {', '.join(ENDINGS)}.",
            "The ending tells the format.",
        )
    return path, found


def text_of(checks: Sequence[Check], format_: CheckFormat, inconclusive_ok: bool) -> str:
    """The checks in a format that is not for the terminal, with a final newline."""
    if format_ == "json":
        return msgspec.json.format(msgspec.json.encode(checks), indent=2).decode() + "\n"
    if format_ == "markdown":
        from gpubench.render.check_markdown import check_markdown

        return check_markdown(checks)
    if format_ == "junit":
        from gpubench.render.junit import junit

        return junit(checks, inconclusive_ok)
    from gpubench.render.github import github

    return github(checks)


def show(checks: Sequence[Check], format_: CheckFormat, inconclusive_ok: bool) -> None:
    """Prints the checks on standard output."""
    if format_ != "table":
        emit(text_of(checks, format_, inconclusive_ok))
        return
    from rich.console import Console

    from gpubench.render.check_table import show as show_table

    console = Console(highlight=False)
    for index, one in enumerate(checks):
        if index:
            console.print()
        show_table(console, one)
