"""From a request to a measured report: the one place where executor and study are put together."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

import gpubench
from gpubench.analysis.knee import knee
from gpubench.executor.executor import Executor
from gpubench.executor.local import Target, local_executor
from gpubench.executor.outcome import now
from gpubench.executor.scratch import scratch_folder
from gpubench.report.model import SCHEMA_VERSION, Configuration, Plan, Protocol, Report, Tool
from gpubench.search.requested import DEFAULT_PRESET
from gpubench.search.space import Builder
from gpubench.search.strategy import SearchSpace
from gpubench.study.book import Book
from gpubench.study.destination import Output, ReportNotSaved, begin, check_output, path_of
from gpubench.study.listener import Listener
from gpubench.study.planning import builder_of, likely_environments, scope_of, space_of
from gpubench.study.request import StudyRequest
from gpubench.study.study import ROUNDS_S, Study
from gpubench.toggles import with_own
from gpubench.toggles.own import stand_in
from gpubench.worker.messages import ProbeResult

# Of a shared machine over minutes, seen in benchmarks/intervals.py: 300 processes over 8 to 12 minutes on 2 cores.
CPU_DRIFT = 0.045
QUICK = "GPUBENCH_QUICK_PROTOCOL"  # environment variable: use QUICK_PROTOCOL, in tests of all but the measuring
QUICK_PROTOCOL = {
    "block_s": 0.01, "min_sampling_s": 0.1, "max_sampling_s": 0.3,
    "warmup_min_iterations": 5, "warmup_min_s": 0.1, "warmup_max_s": 0.5,
    "turns": 2,
}  # fmt: skip
QUICK_NOTE = f"{QUICK} is set: short warm-up and few samples, so do not rely on any figure."


@dataclass(frozen=True)
class Bench:
    """All that measures one workload on one device, open until its block ends."""

    described: ProbeResult
    builder: Builder
    executor: Executor


@contextlib.contextmanager
def open_bench(
    request: StudyRequest,
    listener: Listener | None = None,
    protocol: Protocol | None = None,
    *,
    likely: Iterable[Configuration] = (),
    targets: Sequence[str] = ("",),
) -> Iterator[Bench]:
    """The workload and device of `request`, looked at and ready to be measured.

    `protocol` is used instead of the request's, processes for `likely` are prepared at once beside the baseline's, and
    jobs may ask for the workload by the names of `targets`.
    """
    named = dict.fromkeys(targets, Target(request.choice(), sys.executable))
    on_phase = (listener or Listener()).phase
    with local_executor(named, request.device, protocol or request.protocol(), on_phase) as executor:
        executor.begin([{}, *likely])
        import scipy.stats  # noqa: F401 - it takes 0.6 s, which the servers' own imports leave free here

        described, *_ = [executor.describe(request.batch_size, name) for name in targets]
        with with_own(map(stand_in, described.workload.toggles)):
            builder = builder_of(request, described)
            executor.configure(protocol_for(described.device.kind, executor.protocol), builder.reference)
            for text in executor.notes:  # what is known before anything is measured is told then
                (listener or Listener()).note(text)
            yield Bench(described, builder, executor)


def preview(request: StudyRequest) -> SearchSpace:
    """What `run` would measure and skip. Raises GpubenchError as `run` does."""
    request.check()
    with open_bench(request) as bench:
        return space_of(request, bench.builder)


def run(request: StudyRequest, output: Output, resume: bool, listener: Listener) -> Report:
    """Measures what `request` asks for.

    Raises GpubenchError where that cannot be, and ReportNotSaved where all was measured and not saved.
    """
    request.check()
    check_output(output, resume)
    with scratch_folder() as scratch, open_bench(request, listener, likely=likely_environments(request)) as bench:
        space = space_of(request, bench.builder)
        report = new_report(request, bench.described, bench.executor.protocol, space)
        path = path_of(output, report, scratch / "report.json")
        book = Book(begin(report, path, resume, listener), path, listener, strict=request.strict)
        study = Study(
            executor=bench.executor,
            space=space,
            book=book,
            objective=request.objective,
            max_memory_bytes=request.max_memory_bytes,
            rounds_s=ROUNDS_S if request.final_rounds is None else math.inf,
        )
        if output is not None:
            listener.report_at(path)
        toggle = request.sweep
        report = study.compare() if toggle is None else study.sweep(lambda done: knee(done, toggle))
    if book.unsaved and output is not None:
        raise ReportNotSaved(book.unsaved, report)
    return report


def protocol_for(device_kind: str, protocol: Protocol) -> Protocol:
    """`protocol` for a CPU or a GPU, whose sampling must be long enough for NVML's averages over up to 1 s."""
    if device_kind != "cuda":
        protocol = msgspec.structs.replace(protocol, machine_drift=CPU_DRIFT)
    else:
        protocol = msgspec.structs.replace(protocol, device_timer="cuda_event", min_sampling_s=2.5, max_sampling_s=5.0)
    return msgspec.structs.replace(protocol, **QUICK_PROTOCOL) if os.environ.get(QUICK) else protocol


def new_report(request: StudyRequest, described: ProbeResult, protocol: Protocol, space: SearchSpace) -> Report:
    """A report without rows."""
    given = request.set or request.sweep or request.together
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
            matrix=request.preset or ("from --set and --sizes" if given else DEFAULT_PRESET),
            strategy=space.strategy.name,
            baseline=space.baseline.id,
            objective=request.objective,
            allow=list(request.allow),
            set={one.toggle: list(one.values) for one in space.toggles},
            fix=space.builder.fixed,
            configurations=[space.baseline.id, *(candidate.id for candidate in space.planned)],
        ),
        measurements=[],
        notes=[*([QUICK_NOTE] if os.environ.get(QUICK) else []), *Builder(scope_of(described)).remarks()],
    )
