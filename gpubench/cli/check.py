"""`gpubench check`: are reports worse than their baselines?"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from gpubench.analysis.peak_memory import RESOLUTION_BYTES
from gpubench.cli.reports import InconclusiveOk, emit, exit_code, load_all, tell, text_of
from gpubench.errors import EXIT_OK, GpubenchError
from gpubench.regression.baseline_choice import BaselineChoice
from gpubench.regression.comparability import FIELDS, check_fields
from gpubench.regression.comparison import NamedReport
from gpubench.regression.verdicts import RUN_SPREAD, SLOWDOWN, Limits
from gpubench.render.formats import CheckFormat, endings
from gpubench.report import baselines, store
from gpubench.text import encodable, printable
from gpubench.units import format_bytes, parse_share

limit_option = partial(typer.Option, metavar="SHARE", rich_help_panel="Limits")
baseline_option = partial(typer.Option, rich_help_panel="Baselines")


def by_kind(shares: Mapping[str, float]) -> str:
    """`25% on cpu, 5% on cuda`."""
    return ", ".join(f"{share:.0%} on {kind}" for kind, share in shares.items())


def check(
    reports: Annotated[
        list[Path], typer.Argument(metavar="CURRENT.json...", help="Reports to check, or folders that hold some.")
    ],
    baseline: Annotated[
        str,
        typer.Option(
            "--baseline",
            metavar="FILE|FOLDER",
            help="A report, or a folder of reports, of which the one of the same workload and machine is taken.",
        ),
    ],
    max_slowdown: Annotated[
        str | None,
        limit_option("--max-slowdown", help=f"Smallest slowdown per item that fails. Default: {by_kind(SLOWDOWN)}."),
    ] = None,
    max_p95_growth: Annotated[
        str,
        limit_option("--max-p95-growth", help="Smallest growth of the 95th percentile of latency that fails."),
    ] = "25%",
    max_memory_growth: Annotated[
        str,
        limit_option(
            "--max-memory-growth",
            help="Smallest growth of the peak memory that fails; on a CPU, changes within "
            f"{format_bytes(RESOLUTION_BYTES)} count as none.",
        ),
    ] = "2%",
    max_compile_growth: Annotated[
        str, limit_option("--max-compile-growth", help="Smallest growth of the first call's time that fails.")
    ] = "50%",
    max_error_growth: Annotated[
        str, limit_option("--max-error-growth", help="Smallest growth of the outputs' relative error that fails.")
    ] = "50%",
    run_spread: Annotated[
        str | None,
        limit_option(
            "--run-spread",
            help="Standard deviation between runs of unchanged code on this machine, as `gpubench history` shows it. "
            f"Default: {by_kind(RUN_SPREAD)}.",
        ),
    ] = None,
    allow_different: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-different",
            metavar="FIELD",
            help=f"Compare although this field differs; may be repeated. Fields: {', '.join(FIELDS)}.",
        ),
    ] = None,
    inconclusive_ok: InconclusiveOk = False,
    update: Annotated[
        bool, baseline_option("--update", help="Make the current reports the baselines; needs --reason.")
    ] = False,
    reason: Annotated[
        str | None, baseline_option("--reason", metavar="TEXT", help="Why the baseline changes; kept in it.")
    ] = None,
    format_: Annotated[CheckFormat, typer.Option("--format", help="Format of standard output.")] = "table",
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "--output",
            metavar="FILE",
            help="Also write the verdicts to this file: .json, .md (Markdown) or .xml (JUnit); may be repeated.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", hidden=True, help="No effect: nothing is measured.")] = False,
    confirm: Annotated[bool, typer.Option("--confirm", hidden=True, help="Removed: use gpubench ab.")] = False,
) -> int:
    """Compare reports with their baselines: one verdict per row and metric.

    Exit codes: 0 fine, 1 regressed, 2 wrong usage, 3 not comparable, 4 inconclusive.
    """
    if confirm:
        raise GpubenchError("--confirm was removed.", "Measure both sides together: gpubench ab WORKLOAD --a SIDE.")
    limits = Limits(
        slowdown=parse_share(max_slowdown) if max_slowdown is not None else None,
        run_spread=parse_share(run_spread) if run_spread is not None else None,
        p95_growth=parse_share(max_p95_growth),
        memory_growth=parse_share(max_memory_growth),
        compile_growth=parse_share(max_compile_growth),
        error_growth=parse_share(max_error_growth),
    )
    allow = allow_different or []
    check_fields(allow)
    if update and not (reason or "").strip():
        raise GpubenchError("--update needs --reason TEXT, which is kept in the baseline.")
    if reason is not None and not update:
        raise GpubenchError("--reason is for --update.", "Leave it out, or add --update.")
    if not baseline.strip():
        raise GpubenchError("--baseline is empty.", "Name a report, or a folder of them.")
    path = Path(baseline)
    files = {file: format_of(file) for file in output or []}
    current = load_all(reports)
    if update:
        if files:
            raise GpubenchError(
                "--update writes no verdicts, so --output has no use with it.", "Leave one of them out."
            )
        for target in baselines.adopt_all(current, path, encodable((reason or "").strip())):
            tell(f"Baseline: {target}")
        return EXIT_OK
    choice = BaselineChoice.read(path)
    for text in choice.passed_over:
        tell(f"Skipped: {text}")
    read = {Path(name).resolve() for name in (*(name for name, _ in current), *(each.name for each in choice.reports))}
    for file in files:
        if file.resolve() in read:
            raise GpubenchError(f"--output {printable(str(file))} is one of the reports to read.", "Name another file.")
        store.check_writable(file)
    checks = [choice.check(NamedReport(*each), limits, allow) for each in current]
    for file, name in files.items():
        store.write(file, text_of(checks, name, inconclusive_ok).encode())
    emit(text_of(checks, format_, inconclusive_ok))
    return exit_code([each.verdict for each in checks], inconclusive_ok)


def format_of(path: Path) -> CheckFormat:
    """The format of the file's ending. Raises GpubenchError for an unknown ending."""
    known = endings("check")
    if path.suffix.lower() not in known:
        raise GpubenchError(
            f"--output {path} does not end in {' or '.join(known)}.", "The ending determines the format."
        )
    return known[path.suffix.lower()]
