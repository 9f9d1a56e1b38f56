"""`gpubench recommend`: the recommended configuration from reports, without torch."""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from gpubench.analysis.groups import Answer, answers
from gpubench.cli.reports import ReportPaths, emit, load_all, snippet, tell
from gpubench.errors import EXIT_REGRESSION, GpubenchError
from gpubench.render.formats import AnswerFormat, render
from gpubench.render.report_document import answers_content
from gpubench.report.model import Objective
from gpubench.report.store import check_writable, write
from gpubench.text import plural
from gpubench.units import parse_bytes


def recommend(
    reports: ReportPaths,
    objective: Annotated[
        Objective,
        typer.Option("--objective", help="Most items per second; shortest step, or least memory, at equal batch size."),
    ] = "fps",
    max_memory: Annotated[
        str | None,
        typer.Option("--max-memory", metavar="SIZE", help="Exclude rows that needed more memory, such as 8GiB."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="Also write the configuration to this file, a TOML profile."),
    ] = None,
    format_: Annotated[AnswerFormat, typer.Option("--format", help="Format of standard output.")] = "table",
) -> None:
    """Recommend a configuration for each device, workload and mode in the reports.

    Of several reports about the same thing the newest that recommends anything is used, since rows of different runs
    cannot be compared. Exit code 1: no row is valid.
    """
    limit = parse_bytes(max_memory) if max_memory is not None else None
    if output is not None:
        check_writable(output)
    found = answers(load_all(reports), objective, limit)
    useful = [answer for answer in found if answer.advice.recommendation is not None]
    if not useful:
        raise GpubenchError(
            " ".join(f"{answer.source}: {' '.join(answer.advice.reasons)}" for answer in found),
            "Measure again, or relax --max-memory." if max_memory else "",
            exit_code=EXIT_REGRESSION,
        )
    if output is not None:
        _write_profile(output, useful)
    emit(render(answers_content(found, snippet), format_))
    for answer in found:
        if answer.others:
            tell(
                f"Used {answer.source}; {plural(len(answer.others), 'other report')} about the same thing "
                "not used, since rows of different runs are not compared."
            )


def _write_profile(output: Path, useful: list[Answer]) -> None:
    if len(useful) > 1:
        sources = ", ".join(answer.source for answer in useful)
        raise GpubenchError(
            f"--output holds one recommendation, and there are {len(useful)}: {sources}.", "Name one report at a time."
        )
    from gpubench.render.profile import profile

    answer = useful[0]
    if answer.advice.recommendation is not None:
        created_at = datetime.now(UTC).isoformat(timespec="seconds")
        _refuse_to_replace(output)
        text = profile(answer.report, answer.advice.recommendation, answer.source, created_at)
        write(output, text.encode())
        tell(f"Wrote {output}")


def _refuse_to_replace(output: Path) -> None:
    """Raises GpubenchError where `output` holds anything but a gpubench profile."""
    if not output.exists() or not output.stat().st_size:
        return
    try:
        known = "configuration" in tomllib.loads(output.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        known = False
    if not known:
        raise GpubenchError(f"{output} exists and is not a gpubench profile.", "Choose another --output, or remove it.")
