"""Faults of known size: a clock that only steps move, processes whose figures are scripted, a real pool."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import pytest
from scipy import stats

from gpubench.cli.progress import Quiet
from gpubench.executor.executor import Executor, Job
from gpubench.executor.outcome import Outcome
from gpubench.executor.worker_pool import WorkerPool
from gpubench.hardware.facts import Device
from gpubench.report.model import (
    Configuration,
    Measurement,
    Memory,
    Protocol,
    Quality,
    Report,
    Role,
    Utilization,
    Value,
)
from gpubench.search.space import Builder, ToggleValues
from gpubench.search.strategies import get_strategy, search_space
from gpubench.search.strategy import SearchSpace
from gpubench.study import rows
from gpubench.study.book import Book
from gpubench.study.rows import CONTROL
from gpubench.study.study import Study
from gpubench.toggles.toggle import Scope
from gpubench.worker.messages import EvidenceCollected, Prepared, ProbeResult, SamplesTaken, WorkloadChoice
from tests import reports

STEPS = Path(__file__).with_name("timed_steps.py")
FINE = Quality(passed=True, reason="as planted", reference="planted")


class Script:
    """A clock that only steps move, and a step that takes the next scripted time (the last one for ever)."""

    def __init__(self, *seconds: float) -> None:
        self.time, self.seconds, self.calls = 100.0, list(seconds), 0

    def now(self) -> float:
        return self.time

    def step(self) -> None:
        self.time += self.seconds[min(self.calls, len(self.seconds) - 1)]
        self.calls += 1


# ----- scripted processes


def prepared(steady: bool | None = True, flags: Sequence[str] = ()) -> Prepared:
    """A worker that is ready."""
    return Prepared(
        items_per_step=8,
        compile_time_s=0.1,
        seconds_per_iteration=0.01,
        warmup_iterations=25,
        steady=steady,
        quality=FINE,
        flags=list(map(reports.flag, flags)),
        phases_s={},
    )


def sampled(samples_s: Sequence[float]) -> SamplesTaken:
    """What a worker answers that took these samples."""
    return SamplesTaken(
        samples_s=list(samples_s), device_samples_s=None, iterations_per_sample=1, unmet="", started=0.0, ended=1.0
    )


def process(samples_s: Sequence[float], flags: Sequence[str] = (), seen: Utilization | None = None) -> Outcome:
    """A process that ran well and took these samples."""
    return Outcome(
        "ok",
        "",
        "2026-01-02T03:04:05+00:00",
        prepared=prepared(),
        sampled=sampled(samples_s),
        collected=EvidenceCollected(evidence=[], flags=[], seconds=0.0),
        utilization=seen,
        flags=tuple(map(reports.flag, flags)),
    )


@dataclass
class Planted:
    """An executor whose processes take what `seconds` says of a row's id and of how many processes ran before."""

    seconds: Callable[[str, int], float]
    count: Callable[[str], int] = lambda _: 3  # samples of a process
    noise: float = 0.001  # between samples of one process, half of the whole range
    flags: Callable[[str, int], Sequence[str]] = lambda _, __: ()
    memory: Memory | None = None  # of each process that ran alone
    control: str = "baseline"  # the row whose times the A/A control of a final has
    free: float = 2**60  # bytes
    protocol: Protocol = field(default_factory=Protocol)
    notes: list[str] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)

    def describe(self, batch_size: int | None, target: str = "") -> ProbeResult:
        """Of the workload of `tests.reports` on a CPU."""
        like = reports.report(device=reports.CPU)
        return ProbeResult(workload=like.workload, device=like.device, environment=like.environment, modules={})

    def configure(self, protocol: Protocol, defaults: Mapping[str, Value]) -> None:
        """The protocol is kept; nothing follows from the defaults."""
        self.protocol = protocol

    def begin(self, configurations: Iterable[Configuration]) -> None:
        """Nothing has to be started."""

    def prepare(self, configurations: Iterable[Configuration]) -> None:
        """Nothing has to be started."""

    def run_alone(self, job: Job) -> Outcome:
        """The next process."""
        position = len(self.ran)
        self.ran.append(job.id)
        like = self.control if job.id == CONTROL else job.id
        samples = reports.samples(self.seconds(like, position), self.count(like) | 1, self.noise)
        return replace(process(samples, self.flags(like, position)), memory=self.memory)

    def run_round(self, jobs: Sequence[Job], needed_bytes: int | None = None) -> dict[str, Outcome]:
        """The next processes, in the order of `jobs`."""
        return {job.id: self.run_alone(job) for job in jobs}

    def free_memory_bytes(self) -> float:
        """More than anything takes, unless a test says otherwise."""
        return self.free

    def harness_seconds(self, measuring_s: float) -> dict[str, float]:
        """Nothing was spent."""
        return {}


def builder(device: Device = reports.CPU) -> Builder:
    """For the workload of `tests.reports`."""
    return Builder(Scope(device=device, workload=reports.report().workload, torch_version=(2, 13)))


def threads_matrix(count: int) -> SearchSpace:
    """`count` rows beside the baseline."""
    return search_space(builder(), [ToggleValues("threads", tuple(range(101, 101 + count)))], get_strategy("each"))


def study(
    path: Path,
    executor: Executor,
    space: SearchSpace,
    protocol: Protocol,
    *,
    strict: bool = False,
    allow: Sequence[str] = (),
    report: Report | None = None,
) -> Study:
    """A real study on a CPU over what `executor` measures; `report`: to go on with."""
    plan = msgspec.structs.replace(
        reports.report().plan,
        strategy=space.strategy.name,
        baseline=space.baseline.id,
        configurations=[],
        allow=list(allow),
    )
    if report is not None:
        plan = msgspec.structs.replace(report.plan, allow=list(allow))
    blank = msgspec.structs.replace(reports.report(device=reports.CPU, finished=False), protocol=protocol, plan=plan)
    started = blank if report is None else msgspec.structs.replace(report, plan=plan, recommendation=None)
    return Study(
        executor=executor,
        space=space,
        book=Book(started, path, Quiet(), strict=strict),
    )


def row_of(report: Report, row_id: str) -> Measurement:
    """The row of that id."""
    return next(row for row in report.measurements if row.id == row_id)


def duelled(row_id: str, results: Sequence[Outcome], *roles: Role) -> Measurement:
    """A row whose final those processes were, built as a study builds it."""
    row = Measurement(
        id=row_id, configuration={"precision": row_id}, status="ok", reason="", roles=list(roles), items_per_step=1
    )
    for index, result in enumerate(results, start=1):
        row = rows.with_round(row, result, "final", index, index)
    return row


def most_hits(studies: int, rate: float) -> int:
    """As many hits as chance gives at that rate in 999 of 1000 such collections of studies, or more."""
    return int(stats.binom.ppf(0.999, studies, rate))


# ----- real processes


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which steps under way look for orders; one thread, so that cores are left for others."""
    folder = tmp_path_factory.mktemp("orders")
    known = {"GPUBENCH_FAULTS": str(folder), "OMP_NUM_THREADS": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in known.items():
            patch.setitem(os.environ, name, value)
        yield folder


@pytest.fixture(scope="module")
def pool(orders: Path) -> Iterator[WorkerPool]:
    """One for all tests of a file: starting it takes seconds. A test sets `choice` and `protocol` as it needs them."""
    with WorkerPool(choice("tiny"), "cpu", Protocol()) as made:
        yield made


def choice(name: str) -> WorkloadChoice:
    """A workload of `timed_steps.py`."""
    return WorkloadChoice(reference=f"{STEPS}:{name}", size=None, parameters={}, mode="inference")
