"""One fresh process measures one configuration: whatever happens in it becomes a `ProcessResult`."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from gpubench.errors import GpubenchError
from gpubench.hardware.cpu import CpuTimes, read_times
from gpubench.hardware.nvml import Unavailable
from gpubench.measure.monitor import Monitor
from gpubench.results.schema import Evidence, Quality, Status, Utilization, Value
from gpubench.runner.laboratory import Laboratory, tolerance_of
from gpubench.runner.workers import OnPhase, Worker, WorkerError, WorkerFailed
from gpubench.worker.messages import Finish, MemoryRead, Prepare, Prepared, Sample, Sampled

BUSY_CORES = 0.25  # a quarter of a core: the system's own housekeeping stays below 0.1 (seen on an idle machine)
VMSTAT = Path("/proc/vmstat")


@dataclass(frozen=True)
class ProcessResult:
    """What one process gave. `prepared`, `sampled` and `memory` are None from where it failed on."""

    status: Status
    reason: str
    started_at: str
    prepared: Prepared | None = None
    sampled: Sampled | None = None
    memory: MemoryRead | None = None
    device_process_memory_bytes: int | None = None
    device_process_memory_problem: str = ""
    utilization: Utilization | None = None
    flags: tuple[str, ...] = ()
    log_tail: str = ""
    phases_s: Mapping[str, float] = field(default_factory=dict)

    @property
    def quality(self) -> Quality | None:
        """The quality before sampling, or that of the last timed output where only that is wrong."""
        before = self.prepared.quality if self.prepared else None
        after = self.memory.final_quality if self.memory else None
        return after if after is not None and after.passed is False else before


def measure(
    laboratory: Laboratory,
    row_id: str,
    configuration: dict[str, Value],
    defaults: Mapping[str, Value],
    on_phase: OnPhase,
) -> ProcessResult:
    """Measures `configuration` in a fresh process; never raises for what happens inside it."""
    started_at = now()
    on_phase("reference")
    reference = laboratory.reference(configuration, defaults)
    on_phase("start")
    started, kills = time.monotonic(), oom_kills()
    try:
        worker = laboratory.worker(configuration)
    except WorkerError as error:
        return ProcessResult("crashed", sentence(error.reason), started_at)
    except GpubenchError as error:  # a server in this configuration's environment (a preloaded allocator) cannot start
        return ProcessResult("crashed", sentence(error.message), started_at)
    request = Prepare(
        choice=laboratory.choice,
        device=laboratory.device,
        configuration=configuration,
        protocol=laboratory.protocol,
        tolerance=tolerance_of(configuration),
        compile_cache=laboratory.compile_cache(row_id),
        reference_folder=reference.folder,
        reference_problem=reference.problem,
    )
    try:
        prepared, sampled, memory, monitored = _run(laboratory, worker, request, on_phase)
    except WorkerFailed as error:
        failed = error.failed
        status: Status = "oom" if failed.kind == "oom" else "failed"
        reason = f"{failed.reason} (during {error.phase})"
        return ProcessResult(status, sentence(reason), started_at, log_tail=worker.log_tail())
    except WorkerError as error:
        status, reason = ended(error, laboratory.protocol.timeout_s, oom_kills() > kills)
        return ProcessResult(status, sentence(reason), started_at, log_tail=worker.log_tail())
    finally:
        worker.kill()  # it has nothing left to say; waiting would make Ctrl-C wait for a compilation
    utilization, process_memory, problem, busy = monitored
    phases = {
        **prepared.phases_s,
        "samples": sampled.ended - sampled.started,
        "total": time.monotonic() - started,
    }
    result = ProcessResult(
        status="ok",
        reason="",
        started_at=started_at,
        prepared=prepared,
        sampled=sampled,
        memory=memory,
        device_process_memory_bytes=process_memory,
        device_process_memory_problem=problem,
        utilization=utilization,
        flags=flags_of(prepared, sampled, busy),
        phases_s=phases,
    )
    status, reason = verdict(result)
    tail = worker.log_tail() if status != "ok" else ""
    return replace(result, status=status, reason=sentence(reason), log_tail=tail)


Monitored = tuple[Utilization, int | None, str, float | None]


def _run(
    laboratory: Laboratory, worker: Worker, request: Prepare, on_phase: OnPhase
) -> tuple[Prepared, Sampled, MemoryRead, Monitored]:
    deadline = time.monotonic() + request.protocol.timeout_s
    with Monitor(worker.pid, laboratory.nvml_device, hz=request.protocol.monitor_hz) as monitor:
        prepared = worker.ask(request, Prepared, deadline, on_phase)
        before = read_times()
        sampled = worker.ask(Sample(), Sampled, deadline, on_phase)
        after = read_times()
        process_memory = monitor.device_process_memory_bytes()
        memory = worker.ask(Finish(), MemoryRead, deadline, on_phase)
        utilization = monitor.window(sampled.started, sampled.ended)
    busy = others(before, after, utilization, sampled.ended - sampled.started)
    if isinstance(process_memory, Unavailable):
        return prepared, sampled, memory, (utilization, None, process_memory.reason, busy)
    return prepared, sampled, memory, (utilization, process_memory, "", busy)


def others(
    before: CpuTimes | Unavailable, after: CpuTimes | Unavailable, utilization: Utilization, seconds: float
) -> float | None:
    """Cores that other processes and the hypervisor kept busy over `seconds`; None where that cannot be read."""
    own = utilization.process_cpu_percent
    if isinstance(before, Unavailable) or isinstance(after, Unavailable) or own is None or seconds <= 0:
        return None
    total = after.busy - before.busy + after.steal - before.steal
    return max(0.0, (total - (after.ours - before.ours)) / seconds - own.mean / 100)


def verdict(result: ProcessResult) -> tuple[Status, str]:
    """The status of a process that ran to its end: wrong outputs first, then toggles without effect."""
    quality = result.quality
    if quality is not None and quality.passed is False:
        stale = "" if result.prepared and result.prepared.quality.passed is False else "of the last timed step "
        return "wrong", f"the output {stale}differs from the fp32 reference: {quality.reason}"
    idle = [one for one in _evidence(result) if one.took_effect is False]
    if idle:
        return "not_effective", "; ".join(f"{one.toggle}={one.value} took no effect: {one.detail}" for one in idle)
    return "ok", ""


def _evidence(result: ProcessResult) -> list[Evidence]:
    return result.prepared.evidence if result.prepared else []


def flags_of(prepared: Prepared, sampled: Sampled, busy: float | None) -> tuple[str, ...]:
    """What a reader should know of a row beside its status."""
    flags = list(prepared.flags)
    if prepared.steady is False:
        flags.append(f"unsteady: the warm-up's {prepared.warmup_iterations} iterations did not settle")
    elif prepared.steady is None:
        flags.append(f"short_warmup: {prepared.warmup_iterations} iterations are too few to tell whether it is steady")
    if busy is not None and busy > BUSY_CORES:
        flags.append(f"busy_machine: other processes kept {busy:.1f} cores busy while it was timed")
    if sampled.unmet:
        flags.append(f"stopped_by_time: {sampled.unmet}")
    if prepared.quality.passed is None:
        flags.append(f"quality_unchecked: {prepared.quality.reason}")
    flags += [f"unproven: {one.toggle}: {one.detail}" for one in prepared.evidence if one.took_effect is None]
    return tuple(flags)


def ended(error: WorkerError, timeout_s: float, kernel_killed: bool) -> tuple[Status, str]:
    """Status and reason of a worker that ended without an answer."""
    if error.kind == "timeout":
        return "timeout", f"no end within {timeout_s:g} s; it was stopped during {error.phase} (see --timeout)"
    if kernel_killed:
        return "oom", f"the kernel's out-of-memory killer ended it during {error.phase}"
    return "crashed", f"{error.reason} during {error.phase}"


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory since it started; 0 where it does not tell."""
    try:
        found = re.search(r"^oom_kill (\d+)$", VMSTAT.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found.group(1)) if found else 0


def now() -> str:
    """UTC now, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def sentence(text: str) -> str:
    """`text` in one line, as a sentence."""
    line = " ".join(text.split())
    return line if not line or line.endswith((".", "!", "?")) else f"{line}."
