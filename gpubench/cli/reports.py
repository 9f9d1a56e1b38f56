"""What the commands that read reports share: loading files, the code of a configuration, and output."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gpubench.errors import GpubenchError
from gpubench.report import store
from gpubench.report.model import Recommendation, Report
from gpubench.text import printable

ReportPaths = Annotated[
    list[Path], typer.Argument(metavar="REPORT.json...", help="Reports, or folders that hold some.")
]


def load_all(paths: list[Path]) -> list[tuple[str, Report]]:
    """Each report with the path it was read from, once each; a folder stands for the JSON files below it.

    In a folder, a file that is no report is skipped with a note on standard error.

    Raises GpubenchError for a named file that is no valid report, and where a folder holds none.
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
    from gpubench.toggles import get, parse_value, usage

    baseline = report.find(recommendation.versus)
    try:
        for name, value in recommendation.configuration.items():
            parse_value(get(name), str(value))  # a report is data: it may hold what no toggle here offers
        return usage(recommendation.configuration, baseline.configuration if baseline else None)
    except GpubenchError as error:
        # On one line: what follows would be no comment.
        return f"# No code for this configuration: {printable(error.message)}"


def emit(text: str) -> None:
    """Prints what a format rendered on standard output."""
    sys.stdout.write(text)


def tell(text: str) -> None:
    """Prints a note in one line on standard error."""
    typer.echo(printable(text), err=True)
