"""`gpubench check`: did a report get worse than its baseline?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gpubench.analysis.check import Source
from gpubench.analysis.check import check as compare
from gpubench.analysis.comparability import FIELDS, about, nearest
from gpubench.analysis.verdicts import Check, Limits
from gpubench.cli.reports import load_all
from gpubench.cli.verdicts import CheckFormat, InconclusiveOk, as_json, exit_code, show
from gpubench.errors import EXIT_INCOMPARABLE, EXIT_OK, GpubenchError, unknown_name
from gpubench.results import baselines, store
from gpubench.results.schema import Report
from gpubench.text import printable
from gpubench.units import parse_duration, parse_share

LIMITS = "Limits"
BASELINES = "Baselines"
AGAIN = "Measuring again"


def check(
    reports: Annotated[
        list[Path], typer.Argument(metavar="CURRENT.json...", help="Reports to check, or folders that hold some.")
    ],
    baseline: Annotated[
        Path,
        typer.Option(
            "--baseline",
            metavar="FILE|FOLDER",
            help="A report, or a folder of them: the one of the same workload and machine is picked.",
        ),
    ],
    max_slowdown: Annotated[
        str, typer.Option("--max-slowdown", metavar="SHARE", help="Of the time per item.", rich_help_panel=LIMITS)
    ] = "5%",
    max_p95_growth: Annotated[
        str,
        typer.Option(
            "--max-p95-growth", metavar="SHARE", help="Of the latency's 95th percentile.", rich_help_panel=LIMITS
        ),
    ] = "25%",
    max_memory_growth: Annotated[
        str, typer.Option("--max-memory-growth", metavar="SHARE", help="Of the peak memory.", rich_help_panel=LIMITS)
    ] = "2%",
    max_compile_growth: Annotated[
        str, typer.Option("--max-compile-growth", metavar="SHARE", help="Of the first call.", rich_help_panel=LIMITS)
    ] = "50%",
    max_error_growth: Annotated[
        str,
        typer.Option(
            "--max-error-growth", metavar="SHARE", help="Of the outputs' relative error.", rich_help_panel=LIMITS
        ),
    ] = "50%",
    allow_different: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-different",
            metavar="FIELD",
            help=f"Compare although this differs; may be repeated. Of: {', '.join(FIELDS)}.",
        ),
    ] = None,
    inconclusive_ok: InconclusiveOk = False,
    confirm: Annotated[
        bool,
        typer.Option(
            "--confirm",
            help="Measure rows that look slower or undecided again, here and interleaved with others; "
            "the rounds are added to the report.",
            rich_help_panel=AGAIN,
        ),
    ] = False,
    confirm_time: Annotated[
        str,
        typer.Option(
            "--confirm-time", metavar="TIME", help="Stop after so long, but not before 5 rounds.", rich_help_panel=AGAIN
        ),
    ] = "5min",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress and no notes.", rich_help_panel=AGAIN)] = False,
    update: Annotated[
        bool,
        typer.Option(
            "--update", help="Make the current reports the baselines, with --reason.", rich_help_panel=BASELINES
        ),
    ] = False,
    reason: Annotated[
        str | None,
        typer.Option("--reason", metavar="TEXT", help="Why, kept in the baseline.", rich_help_panel=BASELINES),
    ] = None,
    format_: Annotated[CheckFormat, typer.Option("--format", help="What goes to standard output.")] = "table",
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Also write the verdicts to this file, as JSON.")
    ] = None,
) -> int:
    """Hold reports against their baselines: one verdict for each row and metric.

    Exit codes: 0 fine, 1 regressed, 2 wrong usage, 3 not comparable, 4 not enough data to tell.
    """
    limits = Limits(
        slowdown=parse_share(max_slowdown),
        p95_growth=parse_share(max_p95_growth),
        memory_growth=parse_share(max_memory_growth),
        compile_growth=parse_share(max_compile_growth),
        error_growth=parse_share(max_error_growth),
    )
    allow = allow_different or []
    for name in allow:
        if name not in FIELDS:
            raise unknown_name("field", name, FIELDS)
    if confirm and update:
        raise GpubenchError("--confirm and --update do not go together.", "Confirm first, then update.")
    if update and not (reason or "").strip():
        raise GpubenchError("--update needs --reason TEXT: a baseline says why it was taken.")
    if reason is not None and not update:
        raise GpubenchError("--reason is for --update.", "Leave it out, or add --update.")
    if output is not None:
        store.check_writable(output)
    current = load_all(reports)
    if update:
        return _update(current, baseline, (reason or "").strip())
    again = parse_duration(confirm_time) if confirm else None
    checks = [_checked(Source(*one), baseline, limits, allow, again, quiet) for one in current]
    if output is not None:
        store.write(output, as_json(checks))
    show(checks, format_, inconclusive_ok)
    return exit_code([one.verdict for one in checks], inconclusive_ok)


def _checked(
    current: Source, path: Path, limits: Limits, allow: list[str], confirm_s: float | None, quiet: bool
) -> Check:
    candidates, passed = baselines.load_all(path)
    for text in passed:
        print(printable(f"Passed over: {text}"), file=sys.stderr)  # noqa: T201
    found = nearest(candidates, current.report) if path.is_dir() else candidates[0]
    if found is None:
        kinds = sorted({" ".join(about(one)[:3]) for _, one in candidates})
        raise GpubenchError(
            f"{printable(str(path))} has no baseline for {printable(' '.join(about(current.report)[:3]))}, "
            f"only for {printable(', '.join(kinds))}.",
            "Make one with --update --reason TEXT.",
            exit_code=EXIT_INCOMPARABLE,
        )
    first = compare(current, Source(*found), limits, allow)
    if confirm_s is None:
        return first
    from gpubench.cli.confirm import confirm

    return confirm(first, current, Source(*found), limits, allow, confirm_s, quiet)


def _update(current: list[tuple[str, Report]], path: Path, reason: str) -> int:
    for name, report in current:
        if report.finished_at is None:
            raise GpubenchError(
                f"{printable(name)} holds an unfinished run.", "Finish it with --resume before it becomes a baseline."
            )
        if not any(row.status == "ok" for row in report.measurements):
            raise GpubenchError(f"{printable(name)} has no valid row, so it can be no baseline.")
    targets = [baselines.place(path, report) for _, report in current]
    if len(set(targets)) < len(targets):
        raise GpubenchError("Two of the reports would become the same baseline.", "Name one of them, or a folder.")
    for _, report in current:
        target = baselines.adopt(report, path, reason)
        print(printable(f"Baseline: {target}"), file=sys.stderr)  # noqa: T201
    return EXIT_OK
