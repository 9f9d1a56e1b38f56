"""From a command's options to a run, and from its report to what is printed."""

from __future__ import annotations

import math
import os
import re
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec

import gpubench
from gpubench.analysis.eligibility import GATES
from gpubench.analysis.knee import knee
from gpubench.cli.planning import Request, choice_of, fixed, likely_environments, matrix_of, scope_of
from gpubench.cli.progress import Quiet, listener
from gpubench.cli.show import print_dry_run, print_report
from gpubench.errors import EXIT_OK, EXIT_REGRESSION, GpubenchError, unknown_name
from gpubench.executor.executor import Executor
from gpubench.executor.local import Target, local_executor
from gpubench.executor.outcome import now
from gpubench.report import store
from gpubench.report.model import SCHEMA_VERSION, Plan, Protocol, Report, Tool
from gpubench.search.space import Builder
from gpubench.search.strategies import get_strategy
from gpubench.search.strategy import SearchSpace
from gpubench.study.book import Book
from gpubench.study.resume import refuse_unlike
from gpubench.study.study import ROUNDS_S, Study
from gpubench.text import printable
from gpubench.units import parse_bytes, parse_duration
from gpubench.worker.messages import ProbeResult
from gpubench.workloads import check_reference

# Of a shared machine over minutes, seen in benchmarks/intervals.py: 300 processes over 8 to 12 minutes on 2 cores.
CPU_DRIFT = 0.045
FINAL_ROUNDS = 6
LONGEST_S = 30 * 24 * 3600.0  # a month: beyond it the system's own clocks overflow


def run(request: Request) -> int:
    """Measures what `request` asks for; the exit code."""
    max_memory = parse_bytes(request.max_memory) if request.max_memory else None
    timeout = min(parse_duration(request.timeout), LONGEST_S)
    # Complain of what can be told now, before the seconds that torch takes to load.
    check_reference(request.workload)
    _ = request.requested
    if request.strategy:
        get_strategy(request.strategy)
    for flag in request.allow:
        if flag not in GATES:
            raise unknown_name("flag", flag, list(GATES))
    if request.output:
        store.check_writable(request.output)
    progress = listener(request.quiet or request.dry_run)
    protocol = Protocol(
        timeout_s=timeout,
        seed=request.seed,
        max_memory_bytes=max_memory,
        rounds=request.rounds,
        final_rounds=FINAL_ROUNDS if request.final_rounds is None else request.final_rounds,
        pair=request.pair,
    )
    targets = {"": Target(choice_of(request), sys.executable)}
    with local_executor(targets, request.device, protocol, progress.phase) as executor, progress:
        executor.begin([{}, *likely_environments(request)])
        import scipy.stats  # noqa: F401 - it takes 0.6 s, which the servers' own imports leave free here

        described = executor.describe(request.batch_size)
        protocol = protocol_for(described.device.kind, protocol)
        builder = Builder(scope_of(described), fixed(request, described))
        executor.configure(protocol, builder.defaults)
        matrix = matrix_of(request, builder)
        if request.dry_run:
            print_dry_run(matrix, request.format)
            return EXIT_OK
        report, path = begin(request, described, protocol, matrix)
        book = Book(report, path, progress, strict=request.strict)
        study = study_of(request, executor, matrix, book, progress, max_memory)
        report = measure(request, study)
    print_report(report, request.format)
    if book.unsaved:
        raise GpubenchError(f"The report could not be saved: {book.unsaved}", "What is printed above is all of it.")
    if not request.quiet:
        print(printable(f"Report: {path}"), file=sys.stderr)  # noqa: T201
    failed = [row for row in report.measurements if request.strict and row.reason.startswith("--strict")]
    fine = any(row.status == "ok" for row in report.measurements) and not failed
    return EXIT_OK if fine else EXIT_REGRESSION


def study_of(
    request: Request,
    executor: Executor,
    matrix: SearchSpace,
    book: Book,
    progress: Quiet,
    max_memory: int | None,
) -> Study:
    """The run that `request` asks for."""
    return Study(
        executor=executor,
        space=matrix,
        book=book,
        listener=progress,
        objective=request.objective,
        max_memory_bytes=max_memory,
        rounds_s=ROUNDS_S if request.final_rounds is None else math.inf,
    )


def measure(request: Request, study: Study) -> Report:
    """Runs the study; on interruption the report on disk is valid and its place is told."""
    try:
        if request.sweep is None:
            return study.compare()
        toggle = request.sweep[0]
        return study.sweep(lambda done: knee(done, toggle))
    except BaseException:
        where = shlex.quote(str(study.book.path))
        text = f"Stopped. What was measured is in {where}; go on with: --resume --output {where}"
        print(printable(text), file=sys.stderr)  # noqa: T201
        raise


def protocol_for(device_kind: str, protocol: Protocol) -> Protocol:
    """`protocol` for a CPU or a GPU, whose sampling must be long enough for NVML's averages over up to 1 s."""
    if device_kind != "cuda":
        return msgspec.structs.replace(protocol, machine_drift=CPU_DRIFT)
    return msgspec.structs.replace(protocol, device_timer="cuda_event", min_sampling_s=2.5, max_sampling_s=5.0)


def new_report(request: Request, described: ProbeResult, protocol: Protocol, matrix: SearchSpace) -> Report:
    """A report without rows."""
    return Report(
        schema_version=SCHEMA_VERSION,
        created_at=now(),
        finished_at=None,
        tool=Tool(name="gpubench", version=gpubench.__version__),
        device=described.device,
        environment=described.environment,
        workload=described.workload,
        protocol=protocol,
        plan=Plan(
            command=request.command,
            matrix=request.matrix
            or ("default" if not request.set_ and not request.sweep else "from --set and --sizes"),
            strategy=matrix.strategy.name,
            baseline=matrix.baseline.id,
            objective=request.objective,
            allow=request.allow,
            set={one.toggle: list(one.values) for one in matrix.toggles},
            fix=matrix.builder.fixed,
            configurations=[matrix.baseline.id, *(row.id for row in matrix.planned)],
        ),
        measurements=[],
    )


def begin(request: Request, described: ProbeResult, protocol: Protocol, matrix: SearchSpace) -> tuple[Report, Path]:
    """A new report and its path, or the one to go on with."""
    report = new_report(request, described, protocol, matrix)
    stem = f"{slug(described.workload.name)}-{described.workload.mode}"
    folder = Path("results", described.device.slug)
    if request.resume:
        path = request.output or newest_unfinished(folder, stem, request.command)
        if path.exists():
            earlier = store.load(path)
            refuse_unlike(earlier, report, path)
            plan = msgspec.structs.replace(earlier.plan, objective=request.objective, allow=request.allow)
            return msgspec.structs.replace(earlier, plan=plan, finished_at=None, recommendation=None, sweep=None), path
        raise GpubenchError(f"There is no report {path} to go on with.", "Leave --resume out to begin it.")
    path = request.output or folder / f"{stem}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
    if request.output and path.exists() and path.stat().st_size:
        refuse_to_replace(path)
    if not request.output:
        make_folder(folder)
    store.check_writable(path)
    return report, path


def refuse_to_replace(path: Path) -> None:
    """Raises GpubenchError where `path` is a foreign file or an unfinished run; keeps a finished one as `.bak`."""
    try:
        finished = store.load(path).finished_at is not None
    except GpubenchError as error:
        raise GpubenchError(
            f"{path} exists and is no gpubench report.", "Choose another --output, or remove it."
        ) from error
    if not finished:
        raise GpubenchError(f"{path} holds an unfinished run.", "Go on with it by --resume, or remove it.")
    path.replace(path.with_name(f"{path.name}.bak"))


def make_folder(folder: Path) -> None:
    """Creates `folder`; GpubenchError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GpubenchError(
            f"The folder {folder} cannot be made here: {os.strerror(error.errno or 0)}.", "Give another --output."
        ) from error


def newest_unfinished(folder: Path, stem: str, command: str) -> Path:
    """The newest report of this workload that was cut off; GpubenchError where there is none."""
    for path in sorted(folder.glob(f"{stem}-*.json"), reverse=True):
        try:
            report = store.load(path)
        except GpubenchError:
            continue  # damaged or foreign: not what is looked for
        if report.finished_at is None and report.plan.command == command:
            return path
    raise GpubenchError(f"No unfinished report {folder}/{stem}-*.json is here.", "Name one with --output FILE.")


def slug(name: str) -> str:
    """`name` as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "workload"
