"""`gpubench check`: did a report get worse than its baseline?"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from gpubench.analysis.peak_memory import RESOLUTION_BYTES
from gpubench.cli.reports import load_all
from gpubench.cli.verdict_output import CheckFormat, InconclusiveOk, as_file, exit_code, show, text_of
from gpubench.errors import EXIT_OK, GpubenchError, unknown_name
from gpubench.regression.comparability import FIELDS, about, nearest
from gpubench.regression.comparison import NamedReport, without_baseline
from gpubench.regression.comparison import check as compare
from gpubench.regression.verdicts import RUN_SPREAD, SLOWDOWN, Check, Limits
from gpubench.report import baselines, store
from gpubench.report.model import Report
from gpubench.text import encodable, printable
from gpubench.units import format_bytes, parse_share

LIMITS = "Limits"
HELP_MEMORY = f"Of the peak memory; on a CPU changes within {format_bytes(RESOLUTION_BYTES)} count as none."
BASELINES = "Baselines"


def by_kind(shares: Mapping[str, float]) -> str:
    """`25% on cpu, 5% on cuda`."""
    return ", ".join(f"{one:.0%} on {kind}" for kind, one in shares.items())


def check(
    reports: Annotated[
        list[Path], typer.Argument(metavar="CURRENT.json...", help="Reports to check, or folders that hold some.")
    ],
    baseline: Annotated[
        str,
        typer.Option(
            "--baseline",
            metavar="FILE|FOLDER",
            help="A report, or a folder of them: the one of the same workload and machine is picked.",
        ),
    ],
    max_slowdown: Annotated[
        str | None,
        typer.Option(
            "--max-slowdown",
            metavar="SHARE",
            help=f"Of the time per item. Default: {by_kind(SLOWDOWN)}.",
            rich_help_panel=LIMITS,
        ),
    ] = None,
    max_p95_growth: Annotated[
        str,
        typer.Option(
            "--max-p95-growth", metavar="SHARE", help="Of the latency's 95th percentile.", rich_help_panel=LIMITS
        ),
    ] = "25%",
    max_memory_growth: Annotated[
        str, typer.Option("--max-memory-growth", metavar="SHARE", help=HELP_MEMORY, rich_help_panel=LIMITS)
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
    run_spread: Annotated[
        str | None,
        typer.Option(
            "--run-spread",
            metavar="SHARE",
            help="By how much two runs of this machine differ by themselves (standard deviation; `gpubench history` "
            f"tells). Default: {by_kind(RUN_SPREAD)}.",
            rich_help_panel=LIMITS,
        ),
    ] = None,
    allow_different: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-different",
            metavar="FIELD",
            help=f"Compare although this differs; may be repeated. Of: {', '.join(FIELDS)}.",
        ),
    ] = None,
    inconclusive_ok: InconclusiveOk = False,
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
        list[Path] | None,
        typer.Option(
            "--output",
            metavar="FILE",
            help="Also write the verdicts to this file: .json, .md (Markdown) or .xml (JUnit); may be repeated.",
        ),
    ] = None,
) -> int:
    """Hold reports against their baselines: one verdict for each row and metric.

    Exit codes: 0 fine, 1 regressed, 2 wrong usage, 3 not comparable, 4 not enough data to tell.
    """
    limits = Limits(
        slowdown=parse_share(max_slowdown) if max_slowdown is not None else None,
        run_spread=parse_share(run_spread) if run_spread is not None else None,
        p95_growth=parse_share(max_p95_growth),
        memory_growth=parse_share(max_memory_growth),
        compile_growth=parse_share(max_compile_growth),
        error_growth=parse_share(max_error_growth),
    )
    allow = allow_different or []
    for name in allow:
        if name not in FIELDS:
            raise unknown_name("field", name, FIELDS)
    if update and not (reason or "").strip():
        raise GpubenchError("--update needs --reason TEXT: a baseline says why it was taken.")
    if reason is not None and not update:
        raise GpubenchError("--reason is for --update.", "Leave it out, or add --update.")
    if not baseline.strip():
        raise GpubenchError("--baseline is empty.", "Name a report, or a folder of them.")
    path = Path(baseline)
    files = [as_file(one) for one in output or []]
    current = load_all(reports)
    if update:
        if files:
            raise GpubenchError(
                "--update compares nothing, so there is nothing for --output.", "Leave one of them out."
            )
        return _update(current, path, encodable((reason or "").strip()))
    candidates = _candidates(path)
    _refuse_inputs([file for file, _ in files], [Path(name) for name, _ in (*current, *candidates)])
    checks = [_checked(NamedReport(*one), path, candidates, limits, allow) for one in current]
    for file, format_of in files:
        store.write(file, text_of(checks, format_of, inconclusive_ok).encode())
    show(checks, format_, inconclusive_ok)
    return exit_code([one.verdict for one in checks], inconclusive_ok)


def _refuse_inputs(files: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Raises GpubenchError where a file to be written is one that is read."""
    for path in files:
        if any(path.resolve() == one.resolve() for one in inputs):
            raise GpubenchError(f"--output {printable(str(path))} is a report that is read.", "Name another file.")
        store.check_writable(path)


def _candidates(path: Path) -> list[tuple[str, Report]]:
    """The reports that may be the baseline; none where there is no such folder yet."""
    if not path.exists() and path.suffix != ".json":
        return []
    found, passed = baselines.load_all(path)
    for text in passed:
        print(printable(f"Passed over: {text}"), file=sys.stderr)  # noqa: T201
    return found


def _checked(
    current: NamedReport,
    path: Path,
    candidates: list[tuple[str, Report]],
    limits: Limits,
    allow: list[str],
) -> Check:
    found: tuple[str, Report] | None
    if candidates and not path.is_dir():
        found = candidates[0]
    else:
        itself = Path(current.name).resolve()
        found = nearest([one for one in candidates if Path(one[0]).resolve() != itself], current.report, allow)
    if found is None:
        return without_baseline(current, str(path), _no_baseline(path, candidates, current.report), limits)
    return compare(current, NamedReport(*found), limits, allow)


def _no_baseline(path: Path, candidates: Sequence[tuple[str, Report]], current: Report) -> str:
    """That a folder has no baseline for that report, what it has, and what to do."""
    mine = about(current)
    kinds = sorted({_named(one) for _, one in candidates if about(one) != mine})
    only = f", only for {', '.join(kinds[:5])}{', ...' if len(kinds) > 5 else ''}" if kinds else ""
    if any(about(one) == mine for _, one in candidates):
        only += " (itself, what was cut off, and sides of an A/B comparison are none)"
    return f"{path} has no baseline for {_named(current)}{only}. Make one with --update --reason TEXT."


def _named(report: Report) -> str:
    """`vae inference small, tile_size=64`."""
    *words, _ = about(report)
    return ", ".join([" ".join(words), *(f"{name}={value}" for name, value in report.workload.parameters.items())])


def _update(current: list[tuple[str, Report]], path: Path, reason: str) -> int:
    for name, report in current:
        if report.finished_at is None:
            raise GpubenchError(
                f"{printable(name)} holds an unfinished run.", "Finish it with --resume before it becomes a baseline."
            )
        if not any(row.status == "ok" for row in report.measurements):
            raise GpubenchError(f"{printable(name)} has no valid row, so it can be no baseline.")
        if report.session is not None:
            raise GpubenchError(
                f"{printable(name)} is a side of an A/B comparison, so it can be no baseline.",
                "Take a report of compare-opts or a sweep.",
            )
    targets = [baselines.baseline_path(path, report) for _, report in current]
    if len(set(targets)) < len(targets):
        raise GpubenchError("Two of the reports would become the same baseline.", "Name one of them, or a folder.")
    for _, report in current:
        target = baselines.adopt(report, path, reason)
        print(printable(f"Baseline: {target}"), file=sys.stderr)  # noqa: T201
    return EXIT_OK
