"""From a request to a measured report: the one place where pool, executor and study are put together."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import msgspec

import gpubench
from gpubench.analysis.knee import knee
from gpubench.executor.local import LocalExecutor
from gpubench.executor.outcome import now
from gpubench.executor.worker_pool import WorkerPool
from gpubench.report.model import SCHEMA_VERSION, Configuration, Plan, Protocol, Report, Tool
from gpubench.search.space import Builder, Matrix
from gpubench.study.destination import Output, ReportNotSaved, begin, check_output, path_of
from gpubench.study.listening import ProgressListener
from gpubench.study.planning import fixed, likely_environments, matrix_of, scope_of
from gpubench.study.request import StudyRequest
from gpubench.study.study import ROUNDS_S, Study
from gpubench.worker.messages import ProbeResult, WorkloadChoice

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

    pool: WorkerPool
    described: ProbeResult
    builder: Builder
    executor: LocalExecutor


@contextlib.contextmanager
def open_bench(
    request: StudyRequest,
    listener: ProgressListener | None = None,
    protocol: Protocol | None = None,
    likely: Iterable[Configuration] = (),
) -> Iterator[Bench]:
    """The workload and device of `request`, looked at and ready to be measured.

    Args:
        protocol: Instead of the request's; what depends on the device follows from that in any case.
        likely: Configurations whose servers are started at once, beside the baseline's.
    """
    with make_pool(request.choice(), request.device, protocol or request.protocol()) as pool:
        pool.begin_servers([{}, *likely])
        import scipy.stats  # noqa: F401 - it takes 0.6 s, which the servers' own imports leave free here

        described = pool.describe(request.batch_size)
        pool.protocol = protocol_for(described.device.kind, pool.protocol)
        builder = Builder(scope_of(described), fixed(request, described))
        yield Bench(pool, described, builder, make_executor(pool, builder, listener or ProgressListener()))


def make_pool(choice: WorkloadChoice, device: str, protocol: Protocol, python: str = sys.executable) -> WorkerPool:
    """The workers' pool."""
    return WorkerPool(choice, device, protocol, python)


def make_executor(
    pool: WorkerPool, builder: Builder, listener: ProgressListener, pools: Mapping[str, WorkerPool] | None = None
) -> LocalExecutor:
    """What measures configurations; `pools`: of rows whose id begins so."""
    if pools is None:
        return LocalExecutor(pool, builder.defaults, listener.phase)
    return LocalExecutor(pool, builder.defaults, listener.phase, pools)


def preview(request: StudyRequest) -> Matrix:
    """What `run` would measure and skip. Raises GpubenchError as `run` does."""
    request.check()
    with open_bench(request) as bench:
        return matrix_of(request, bench.builder)


def run(request: StudyRequest, output: Output, resume: bool, listener: ProgressListener) -> Report:
    """Measures what `request` asks for.

    Raises GpubenchError where that cannot be, and ReportNotSaved where all was measured and not saved.
    """
    request.check()
    check_output(output, resume)
    with open_bench(request, listener, likely=likely_environments(request)) as bench:
        matrix = matrix_of(request, bench.builder)
        report = new_report(request, bench.described, bench.pool.protocol, matrix)
        path = path_of(output, report, bench.pool.folder / "report.json")
        report = begin(report, path, resume)
        study = Study(
            pool=bench.pool,
            bench=bench.executor,
            builder=bench.builder,
            matrix=matrix,
            report=report,
            path=path,
            listener=listener,
            objective=request.objective,
            max_memory_bytes=request.max_memory_bytes,
            strict=request.strict,
            rounds_s=ROUNDS_S if request.final_rounds is None else math.inf,
        )
        if output is not None:
            listener.report_at(path)
        toggle = request.sweep
        report = study.compare() if toggle is None else study.sweep(lambda done: knee(done, toggle))
    if study.unsaved and output is not None:
        raise ReportNotSaved(study.unsaved, report)
    return report


def protocol_for(device_kind: str, protocol: Protocol) -> Protocol:
    """`protocol` for a CPU or a GPU, whose sampling must be long enough for NVML's averages over up to 1 s."""
    if device_kind != "cuda":
        protocol = msgspec.structs.replace(protocol, machine_drift=CPU_DRIFT)
    else:
        protocol = msgspec.structs.replace(protocol, device_timer="cuda_event", min_sampling_s=2.5, max_sampling_s=5.0)
    return msgspec.structs.replace(protocol, **QUICK_PROTOCOL) if os.environ.get(QUICK) else protocol


def new_report(request: StudyRequest, described: ProbeResult, protocol: Protocol, matrix: Matrix) -> Report:
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
            matrix=request.preset or ("default" if not request.set and not request.sweep else "from --set and --sizes"),
            strategy=matrix.strategy,
            baseline=matrix.baseline.id,
            objective=request.objective,
            allow=list(request.allow),
            set={one.toggle: list(one.values) for one in matrix.techniques},
            fix=matrix.fixed,
            configurations=[matrix.baseline.id, *(row.id for row in matrix.planned)],
        ),
        measurements=[],
        notes=[QUICK_NOTE] if os.environ.get(QUICK) else [],
    )
