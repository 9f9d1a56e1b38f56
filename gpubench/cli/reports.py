"""What the commands that read reports share: loading files, code, verdicts, exit code, output."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from gpubench.errors import EXIT_INCOMPARABLE, EXIT_INCONCLUSIVE, EXIT_OK, EXIT_REGRESSION, GpubenchError
from gpubench.regression.verdicts import Check, Verdict
from gpubench.render.check_document import checks_content
from gpubench.render.formats import CheckFormat, render
from gpubench.report import store
from gpubench.report.model import Recommendation, Report
from gpubench.text import printable

ReportPaths = Annotated[
    list[Path], typer.Argument(metavar="REPORT.json...", help="Reports, or folders that hold some.")
]


InconclusiveOk = Annotated[
    bool, typer.Option("--inconclusive-ok", help="Exit code 0 where rows are inconclusive and none regressed.")
]


def load_all(paths: list[Path]) -> list[tuple[str, Report]]:
    """Each report with the path it was read from, once each; a folder stands for the JSON files below it.

    A file there that is no report is skipped with a note. Raises GpubenchError for a named file that is no valid
    report, and where a folder holds none.
    """
    named: dict[Path, tuple[str, Report]] = {}
    for path in paths:
        if not path.is_dir():
            named[path.resolve()] = (str(path), store.load(path))
            continue
        reports, passed = store.load_folder(path)
        for text in passed:
            tell(f"Skipped: {text}")
        if not reports:
            raise GpubenchError(
                f"The folder {path} holds no report.", "Measure with gpubench compare-opts, or name a report."
            )
        named |= {file.resolve(): (str(file), report) for file, report in reports}
    return list(named.values())


def snippet(report: Report, recommendation: Recommendation | None) -> str:
    """The code that switches the recommended configuration on; a comment where a toggle is not known here."""
    if recommendation is None:
        return ""
    # Imports every toggle: only when there is something to show.
    from gpubench.toggles import get, parse_value, usage, with_own
    from gpubench.toggles.own import stand_in
    from gpubench.toggles.toggle import Scope

    try:
        with with_own(map(stand_in, report.workload.toggles)):
            for name, value in recommendation.configuration.items():
                parse_value(get(name), str(value))  # a report is data: it may hold what no toggle here offers
            scope = Scope.of(report.device, report.workload, report.environment)
            return usage(recommendation.configuration, scope)
    except GpubenchError as error:
        # On one line: what follows would be no comment.
        return f"# No code for this configuration: {printable(error.message)}"


def emit(text: str) -> None:
    """Prints what a format rendered on standard output."""
    if sys.stdout is None:
        raise GpubenchError("Standard output is closed.", "Redirect it to a file instead.")
    sys.stdout.write(text)


def tell(text: str) -> None:
    """Prints a note in one line on standard error."""
    typer.echo(printable(text), err=True)


def exit_code(verdicts: Sequence[Verdict], inconclusive_ok: bool) -> int:
    """The exit code of all checks: a regression outweighs incomparable, which outweighs inconclusive."""
    if "regressed" in verdicts:
        return EXIT_REGRESSION
    if "incomparable" in verdicts:
        return EXIT_INCOMPARABLE
    return EXIT_INCONCLUSIVE if "inconclusive" in verdicts and not inconclusive_ok else EXIT_OK


def text_of(checks: Sequence[Check], format_: CheckFormat, inconclusive_ok: bool) -> str:
    """The checks in a format, with a final newline."""
    return render(checks_content(checks, inconclusive_ok), format_)
