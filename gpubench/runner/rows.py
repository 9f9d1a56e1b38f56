"""From processes' results to a row of the report, and to that row again with further rounds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Literal

import msgspec

from gpubench.analysis.statistics import latency
from gpubench.matrix import Planned
from gpubench.results.schema import Measurement, Memory, Role, Round
from gpubench.runner.process import ProcessResult

RoundPhase = Literal["explore", "confirm"]
RECOMMENDED = Role(kind="recommendation")


def skipped(planned: Planned) -> Measurement:
    """The row of a configuration that cannot run."""
    return Measurement(
        id=planned.id,
        configuration=planned.configuration,
        status="skipped",
        reason=f"{planned.skip}.",
        roles=list(planned.roles),
    )


def first_row(planned: Planned, result: ProcessResult, position: int) -> Measurement:
    """The row of a configuration's first process."""
    row = Measurement(
        id=planned.id,
        configuration=planned.configuration,
        status=result.status,
        reason=result.reason,
        roles=list(planned.roles),
        flags=list(result.flags),
        phases_s=add_up({}, result.phases_s),
        log_tail=result.log_tail,
    )
    prepared = result.prepared
    if prepared is None or result.sampled is None:
        return row
    row = msgspec.structs.replace(
        row,
        items_per_step=prepared.items_per_step,
        compile_time_s=prepared.compile_time_s,
        memory=memory(result),
        utilization=result.utilization,
        quality=result.quality,
        evidence=prepared.evidence,
    )
    return with_samples(row, result, "explore", 0, position)


def with_round(row: Measurement, result: ProcessResult, index: int, position: int) -> Measurement:
    """`row` with one more process's samples; a process that failed changes the row's status."""
    if result.status != "ok":
        flag = f"unreliable: {result.status} in a later process: {result.reason}"
        return msgspec.structs.replace(row, status=result.status, reason=result.reason, flags=[*row.flags, flag])
    kinds = {kind(flag) for flag in row.flags}
    row = msgspec.structs.replace(
        row,
        phases_s=add_up(row.phases_s, result.phases_s),
        flags=[*row.flags, *(flag for flag in result.flags if kind(flag) not in kinds)],
    )
    return with_samples(row, result, "confirm", index, position)


def kind(flag: str) -> str:
    """A flag without its details."""
    return flag.partition(":")[0]


def add_up(phases: Mapping[str, float], more: Mapping[str, float]) -> dict[str, float]:
    """Seconds by phase over several processes."""
    return {name: round(phases.get(name, 0.0) + more.get(name, 0.0), 4) for name in dict.fromkeys([*phases, *more])}


def with_samples(row: Measurement, result: ProcessResult, phase: RoundPhase, index: int, position: int) -> Measurement:
    """`row` with the samples of `result` added, and the figures that follow from all samples."""
    sampled, prepared = result.sampled, result.prepared
    if sampled is None or prepared is None or row.items_per_step is None:
        return row
    samples = [*row.samples_s, *sampled.samples_s]
    one = Round(
        phase=phase,
        index=index,
        position=position,
        started_at=result.started_at,
        samples=len(sampled.samples_s),
        iterations_per_sample=sampled.iterations_per_sample,
        warmup_iterations=prepared.warmup_iterations,
        median_s=statistics.median(sampled.samples_s),
        wall_median_s=statistics.median(sampled.wall_samples_s),
    )
    figures = latency(samples)
    return msgspec.structs.replace(
        row,
        samples_s=samples,
        rounds=[*row.rounds, one],
        latency_s=figures,
        fps=row.items_per_step / figures.median if figures.median > 0 else None,
    )


def memory(result: ProcessResult) -> Memory | None:
    """Peaks in bytes, with the reasons for those that are None."""
    read = result.memory
    if read is None:
        return None
    unavailable = dict(read.unavailable)
    if result.device_process_memory_bytes is None:
        unavailable["device_process_memory_bytes"] = result.device_process_memory_problem
    if read.warmup_allocated is None:
        unavailable.setdefault("warmup_peak_memory_allocated_bytes", "torch's CPU allocator keeps no peaks")
    return Memory(
        peak_memory_allocated_bytes=read.allocated,
        peak_memory_reserved_bytes=read.reserved,
        warmup_peak_memory_allocated_bytes=read.warmup_allocated,
        device_process_memory_bytes=result.device_process_memory_bytes,
        host_peak_resident_bytes=read.host_peak,
        host_warmup_peak_resident_bytes=read.host_warmup_peak,
        host_resident_at_start_bytes=read.host_at_start,
        unavailable=unavailable,
    )
