"""What `check` and `ab` share: verdicts as text, and their exit code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from gpubench.errors import EXIT_INCOMPARABLE, EXIT_INCONCLUSIVE, EXIT_OK, EXIT_REGRESSION, GpubenchError
from gpubench.regression.verdicts import Check, Verdict
from gpubench.render.check_document import checks_content
from gpubench.render.formats import CheckFormat as CheckFormat
from gpubench.render.formats import endings, render

InconclusiveOk = Annotated[
    bool, typer.Option("--inconclusive-ok", help="Exit code 0 where rows are inconclusive and none regressed.")
]


def exit_code(verdicts: Sequence[Verdict], inconclusive_ok: bool) -> int:
    """The exit code of all checks: a regression outweighs incomparable, which outweighs inconclusive."""
    if "regressed" in verdicts:
        return EXIT_REGRESSION
    if "incomparable" in verdicts:
        return EXIT_INCOMPARABLE
    return EXIT_INCONCLUSIVE if "inconclusive" in verdicts and not inconclusive_ok else EXIT_OK


def format_of(path: Path) -> CheckFormat:
    """The format of the file's ending. Raises GpubenchError for an unknown ending."""
    known = endings("check")
    if path.suffix.lower() not in known:
        raise GpubenchError(
            f"--output {path} does not end in {' or '.join(known)}.", "The ending determines the format."
        )
    return known[path.suffix.lower()]


def text_of(checks: Sequence[Check], format_: CheckFormat, inconclusive_ok: bool) -> str:
    """The checks in a format, with a final newline."""
    return render(checks_content(checks, inconclusive_ok), format_)
