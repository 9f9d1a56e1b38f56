"""From `gpubench ab`'s options to both sides' pools, and from the comparison to what is printed."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from gpubench.cli.planning import Request, choice_of, fixed, has_no_gpu, matrix_of, request_of, scope_of
from gpubench.cli.progress import Quiet, listener
from gpubench.cli.run import LONGEST_S, make_folder, new_report, protocol_for, slug
from gpubench.cli.verdict_output import exit_code, show
from gpubench.errors import EXIT_INCOMPARABLE, GpubenchError
from gpubench.executor.executor import Executor
from gpubench.executor.local import Target, local_executor
from gpubench.executor.scratch import scratch_folder
from gpubench.regression.verdicts import Limits
from gpubench.report import store
from gpubench.report.model import Protocol
from gpubench.search.space import Builder
from gpubench.search.strategy import SearchSpace
from gpubench.study.book import Book
from gpubench.study.paired import SIDES, Comparison, SideName
from gpubench.study.sides import Side, refuse_foreign_code, resolve, why_apart
from gpubench.text import printable
from gpubench.toggles.allocator import ALLOCATOR, has_tunables, is_chosen
from gpubench.units import parse_duration, parse_share
from gpubench.worker.messages import ProbeResult
from gpubench.workloads import check_reference

TURNS = 8  # of each side in a round: more of them cost less than another process
STEADY = "tuned"
WARMUP_MIN_S = 0.5  # both sides of a round are equally warm
# What `ab` does not ask for.
ABSENT = {"objective": "fps", "strategy": "each", "max_memory": None, "resume": False, "dry_run": False, "allow": None}


def run(options: dict[str, Any]) -> int:
    """Measures both sides and prints the verdict; the exit code."""
    texts: dict[SideName, str] = {side: options.pop(side) for side in SIDES}
    limits = Limits(
        slowdown=parse_share(options.pop("max_slowdown")), memory_growth=parse_share(options.pop("max_memory_growth"))
    )
    time_limit = parse_duration(options.pop("time_limit"))
    inconclusive_ok, format_ = options.pop("inconclusive_ok"), options.pop("format_")
    request = request_of("ab", {**ABSENT, **options, "format_": "table"})
    if texts["a"] == texts["b"] == ".":
        raise GpubenchError(
            "Both sides are the same.", "Name one with --a: an interpreter, FILE.py:NAME or a revision."
        )
    with scratch_folder("sides-") as scratch, listener(request.quiet) as progress:
        sides = {side: resolve(side, texts[side], request.workload, scratch) for side in SIDES}
        with open_executor(request, sides, progress) as executor:
            comparison, matrix = prepare(request, sides, executor, limits, time_limit, progress)
            folder = comparison.books["a"].path.parent
            try:
                found = comparison.run([matrix.baseline, *(one for one in matrix.planned if not one.skip)])
            except BaseException:
                print(printable(f"Stopped. What was measured is in {folder}."), file=sys.stderr)  # noqa: T201
                raise
    show([found], format_, inconclusive_ok)
    if comparison.unsaved:
        raise GpubenchError(f"The reports could not be saved: {comparison.unsaved}", "The verdict is printed above.")
    if not request.quiet:
        print(printable(f"Reports: {folder}"), file=sys.stderr)  # noqa: T201
    return exit_code([found.verdict], inconclusive_ok)


@contextlib.contextmanager
def open_executor(request: Request, sides: Mapping[SideName, Side], progress: Quiet) -> Iterator[Executor]:
    """An executor with a target for each side, whose processes start at the same time."""
    protocol = Protocol(
        timeout_s=min(parse_duration(request.timeout), LONGEST_S),
        seed=request.seed,
        final_rounds=request.rounds,
        turns=TURNS,
        warmup_min_s=WARMUP_MIN_S,
    )
    cpu = request.device == "cpu" or has_no_gpu(request.device)
    likely = cpu and not names_allocator(request) and not is_chosen() and has_tunables()
    targets: dict[str, Target] = {}
    for name, side in sides.items():
        check_reference(side.reference)
        choice = choice_of(dataclasses.replace(request, workload=side.reference))
        targets[name] = Target(choice, side.python)
    with local_executor(targets, request.device, protocol, progress.phase) as executor:
        executor.begin([{}, {ALLOCATOR.name: STEADY}] if likely else [{}])
        yield executor


def prepare(
    request: Request,
    sides: Mapping[SideName, Side],
    executor: Executor,
    limits: Limits,
    time_limit_s: float,
    progress: Quiet,
) -> tuple[Comparison, SearchSpace]:
    """The comparison with two empty reports, and its rows. Raises GpubenchError where the sides cannot be compared."""
    described = {name: look(sides[name], executor, request) for name in SIDES}
    refuse_unlike(described)
    one, other = (described[name] for name in SIDES)
    apart = why_apart(sides["a"], sides["b"], (one.modules, other.modules))
    pair = "round" if apart else request.pair
    if apart:
        progress.note(apart)
    if hold := steady(request, (one, other)):
        progress.note("Both sides run with allocator=tuned, which is steadier; --fix allocator=system leaves it out.")
        request = dataclasses.replace(request, fix=[*request.fix, hold])
    protocol = protocol_for(one.device.kind, msgspec.structs.replace(executor.protocol, pair=pair))
    Builder(scope_of(other), fixed(request, other))  # raises where that side cannot do what is asked of both
    builder = Builder(scope_of(one), fixed(request, one))
    executor.configure(protocol, builder.defaults)
    matrix = matrix_of(request, builder)
    session = uuid.uuid4().hex
    reports = {
        name: msgspec.structs.replace(new_report(request, described[name], protocol, matrix), session=session)
        for name in SIDES
    }
    folder = place(request, one)
    return (
        Comparison(
            executor=executor,
            books={name: Book(report, folder / f"{name}.json", progress) for name, report in reports.items()},
            labels={name: side.label for name, side in sides.items()},
            listener=progress,
            limits=limits,
            rounds=request.rounds,
            time_limit_s=time_limit_s,
        ),
        matrix,
    )


def steady(request: Request, described: Sequence[ProbeResult]) -> str:
    """The setting that takes glibc's heap out of the noise, where both sides can have it and nobody chose another.

    Seen: the log-ratio of two copies in one round has a third to half of the spread (benchmarks/calibration.md).
    """
    if names_allocator(request) or is_chosen():
        return ""
    can = (ALLOCATOR.applies(scope_of(one)) or ALLOCATOR.unmet(scope_of(one), STEADY, {}) for one in described)
    return "" if any(can) else f"{ALLOCATOR.name}={STEADY}"


def names_allocator(request: Request) -> bool:
    """Whether --fix or --set names the allocator."""
    return any(text.partition("=")[0].strip() == ALLOCATOR.name for text in (*request.fix, *request.set_))


def look(side: Side, executor: Executor, request: Request) -> ProbeResult:
    """What the side is; an error says which side it is about."""
    try:
        found = executor.describe(request.batch_size, side.name)
    except GpubenchError as error:
        hint = error.hint
        if side.kind == "interpreter":
            hint = f"It needs torch and gpubench: {side.python} -m pip install gpubench-torch"
        raise GpubenchError(f"Side {side.label}: {error.message}", hint) from error
    refuse_foreign_code(side, found.modules)
    return found


def refuse_unlike(described: Mapping[SideName, ProbeResult]) -> None:
    """Raises GpubenchError where the sides do not do the same job on the same device."""
    one, other = (described[name] for name in SIDES)
    for what, first, second in (
        ("devices", one.device.name, other.device.name),
        ("cards", one.device.uuid or other.device.uuid, other.device.uuid or one.device.uuid),
        ("numbers of cores", one.device.cores, other.device.cores),
        ("modes", one.workload.mode, other.workload.mode),
        ("batch sizes", one.workload.batch_size, other.workload.batch_size),
        ("items", one.workload.item, other.workload.item),
    ):
        if first != second:
            raise GpubenchError(
                f"The sides have different {what}: {printable(str(first))} and {printable(str(second))}.",
                "Their time per item would not be of the same work.",
                exit_code=EXIT_INCOMPARABLE,
            )


def place(request: Request, described: ProbeResult) -> Path:
    """The folder that both reports go to; GpubenchError where it is not empty or cannot be written."""
    workload = described.workload
    stem = f"ab-{slug(workload.name)}-{workload.mode}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    folder = request.output or Path("results", described.device.slug) / stem
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise GpubenchError(f"{printable(str(folder))} exists and is no empty folder.", "Choose another --output.")
    make_folder(folder)
    store.check_writable(folder / "a.json")
    return folder
