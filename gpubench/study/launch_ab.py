"""From two sides to their comparison: executor, reports and rows of both, and why they may not be compared."""

from __future__ import annotations

import contextlib
import dataclasses
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from gpubench.errors import EXIT_INCOMPARABLE, GpubenchError
from gpubench.executor.executor import Executor
from gpubench.executor.local import Target, local_executor
from gpubench.executor.scratch import scratch_folder
from gpubench.regression.verdicts import Check, Limits
from gpubench.report import store
from gpubench.report.model import Configuration, Report
from gpubench.search.space import Builder
from gpubench.search.strategy import SearchSpace
from gpubench.study.book import Book
from gpubench.study.destination import Output, path_of
from gpubench.study.launch import new_report, protocol_for
from gpubench.study.listener import Listener
from gpubench.study.paired import FEWEST_AB_ROUNDS, SIDES, Comparison, SideName
from gpubench.study.planning import builder_of, means_cpu, scope_of, space_of
from gpubench.study.request import StudyRequest, check_workload
from gpubench.study.sides import Side, refuse_foreign_code, resolve, why_apart
from gpubench.text import printable
from gpubench.toggles import get, with_own
from gpubench.toggles.own import stand_in
from gpubench.toggles.toggle import AS_BUILT, Toggle
from gpubench.toggles.traits import steady_values
from gpubench.worker.messages import ProbeResult

TURNS = 8  # of each side in a round: more of them cost less than another process
WARMUP_MIN_S = 0.5  # both sides of a round are equally warm
PairName = Literal["process", "round"]


@dataclass(frozen=True, kw_only=True)
class AbRequest:
    """Two sides and how they are compared; `study` has the workload, the rows and how each is measured."""

    a: str
    b: str
    study: StudyRequest
    limits: Limits
    time_limit_s: float
    pair: PairName

    def check(self) -> None:
        """Raises GpubenchError for whatever can be seen to be wrong without loading torch."""
        if self.a == self.b == ".":
            raise GpubenchError(
                "Both sides are the same.", "Name one with --a: an interpreter, FILE.py:NAME or a revision."
            )
        self.study.check()
        if self.study.rounds < FEWEST_AB_ROUNDS:
            raise GpubenchError(f"rounds is {self.study.rounds}.", f"Give a whole number from {FEWEST_AB_ROUNDS} on.")
        if not self.time_limit_s > 0:
            raise GpubenchError(f"time_limit_s is {self.time_limit_s!r}.", "Give seconds above 0.")


@dataclass(frozen=True, kw_only=True)
class AbResult:
    """The verdict on side b, and what was measured of both sides."""

    check: Check
    a: Report
    b: Report
    unsaved: str = ""  # why the reports are not at `output`


def run(request: AbRequest, output: Output, listener: Listener) -> AbResult:
    """Measures both sides and decides. Raises GpubenchError where they cannot be measured or compared."""
    request.check()
    with scratch_folder("sides-") as folder:
        texts: dict[SideName, str] = {"a": request.a, "b": request.b}
        sides = {side: resolve(side, texts[side], request.study.workload, folder) for side in SIDES}
        with open_executor(request.study, sides, listener) as executor:
            described = {name: look(sides[name], executor, request.study) for name in SIDES}
            refuse_unlike(described)
            with with_own(of_both(described)):
                comparison, space = prepare(request, sides, described, executor, output, folder / "reports", listener)
                if output is not None:
                    listener.report_at(comparison.books["a"].path.parent)
                planned = [candidate for candidate in space.planned if not candidate.skip]
                check = comparison.run([space.baseline, *planned])
    return AbResult(
        check=check,
        a=comparison.books["a"].report,
        b=comparison.books["b"].report,
        unsaved=comparison.unsaved if output is not None else "",
    )


@contextlib.contextmanager
def open_executor(request: StudyRequest, sides: Mapping[SideName, Side], listener: Listener) -> Iterator[Executor]:
    """An executor with a target for each side, whose processes start at the same time."""
    protocol = msgspec.structs.replace(
        request.protocol(), rounds=1, final_rounds=request.rounds, turns=TURNS, warmup_min_s=WARMUP_MIN_S
    )
    likely = unnamed(request, steady_values()) if means_cpu(request.device) else {}
    targets: dict[str, Target] = {}
    for name, side in sides.items():
        check_workload(side.reference)
        targets[name] = Target(dataclasses.replace(request, workload=side.reference).choice(), side.python)
    with local_executor(targets, request.device, protocol, listener.phase) as executor:
        executor.begin([{}, likely] if likely else [{}])
        yield executor


def prepare(
    request: AbRequest,
    sides: Mapping[SideName, Side],
    described: Mapping[SideName, ProbeResult],
    executor: Executor,
    output: Output,
    scratch: Path,
    listener: Listener,
) -> tuple[Comparison, SearchSpace]:
    """The comparison with two empty reports, and its rows. Raises GpubenchError where the sides cannot be compared."""
    study = request.study
    one, other = (described[name] for name in SIDES)
    apart = why_apart(sides["a"], sides["b"], (one.modules, other.modules))
    pair = "round" if apart else request.pair
    if apart:
        listener.note(apart)
    for name, value in steady(study, (one, other)).items():
        baseline = next(iter(get(name).values))
        listener.note(f"Both sides use {name}={value} to reduce noise; --fix {name}={baseline} keeps the default.")
        study = dataclasses.replace(study, fix={**study.fix, name: value})
    protocol = protocol_for(one.device.kind, msgspec.structs.replace(executor.protocol, pair=pair))
    builder = builder_of_sides(study, (one, other))
    executor.configure(protocol, builder.reference)
    space = space_of(study, builder)
    session = uuid.uuid4().hex
    reports = {
        name: msgspec.structs.replace(new_report(study, described[name], protocol, space), session=session)
        for name in SIDES
    }
    folder = empty_folder(path_of(output, reports["a"], scratch))
    comparison = Comparison(
        executor=executor,
        books={name: Book(report, folder / f"{name}.json", listener) for name, report in reports.items()},
        labels={name: side.label for name, side in sides.items()},
        limits=request.limits,
        rounds=study.rounds,
        time_limit_s=request.time_limit_s,
    )
    return comparison, space


def builder_of_sides(request: StudyRequest, described: Sequence[ProbeResult]) -> Builder:
    """What makes configurations for both sides. Raises GpubenchError where a side cannot do what is asked of both.

    Where the code of one side sets a precision, say, or compiles itself, each side is measured as it is built.
    """
    builders = [builder_of(request, side) for side in described]
    return max(builders, key=lambda builder: AS_BUILT in builder.defaults.values())


def of_both(described: Mapping[SideName, ProbeResult]) -> list[Toggle]:
    """The toggles that the workloads of both sides bring with them."""
    a, b = (described[name].workload.toggles for name in SIDES)
    return [stand_in(toggle) for toggle in a if toggle.name in {other.name for other in b}]


def steady(request: StudyRequest, described: Sequence[ProbeResult]) -> Configuration:
    """The values that take noise out of the comparison, where both sides can have them and the user chose no others.

    Seen for the allocator: the log-ratio of two copies in one round has a third to half of the spread
    (benchmarks/calibration.md).
    """
    one, other = (steady_values(scope_of(side)) for side in described)
    return unnamed(request, {name: value for name, value in one.items() if other.get(name) == value})


def unnamed(request: StudyRequest, values: Configuration) -> Configuration:
    """Those of `values` whose toggle neither `fix` nor `set` names."""
    return {name: value for name, value in values.items() if name not in (*request.fix, *request.set)}


def look(side: Side, executor: Executor, request: StudyRequest) -> ProbeResult:
    """What the side is; an error says which side it is about."""
    try:
        described = executor.describe(request.batch_size, side.name)
    except GpubenchError as error:
        hint = error.hint
        if side.kind == "interpreter":
            hint = f"It needs torch and gpubench: {side.python} -m pip install gpubench-torch"
        raise GpubenchError(f"Side {side.label}: {error.message}", hint) from error
    refuse_foreign_code(side, described.modules)
    return described


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
                "Their time per item would not be comparable.",
                exit_code=EXIT_INCOMPARABLE,
            )


def empty_folder(folder: Path) -> Path:
    """The folder that both reports go to; GpubenchError where it is not empty or cannot be written."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise GpubenchError(f"{printable(str(folder))} exists and is not an empty folder.", "Choose another --output.")
    store.check_writable(folder / "a.json")
    return folder
