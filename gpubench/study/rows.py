"""Makes rows of the report from what processes gave, and adds further rounds to them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import msgspec

from gpubench.executor.outcome import Outcome
from gpubench.executor.process_flags import host_bound_fraction, merged, waits_for_gpu
from gpubench.flags import UNRELIABLE
from gpubench.report.model import Measurement, Role, Round, Utilization
from gpubench.search.space import Candidate
from gpubench.stats.latency import latency
from gpubench.stats.processes import Phase, latest
from gpubench.text import sentence

RECOMMENDED = Role(kind="recommendation")
CONTROL = "control"  # id of the baseline's second row in a final
OF_THE_BASELINE = (
    "memory", "quality", "value_range", "evidence", "compile_time_s", "host", "utilization", "counts", "device_busy_s",
    "host_bound_fraction",
)  # fmt: skip


def skipped(planned: Candidate) -> Measurement:
    """The row of a configuration that cannot run."""
    return Measurement(
        id=planned.id,
        configuration=planned.configuration,
        status="skipped",
        reason=sentence(planned.skip),
        roles=list(planned.roles),
    )


def control(base: Measurement) -> Measurement:
    """The row of a final that repeats the baseline `base`, before its first round."""
    return Measurement(
        id=CONTROL,
        configuration=base.configuration,
        status="ok",
        reason="",
        roles=[Role(kind="control")],
        items_per_step=base.items_per_step,
        unavailable=dict.fromkeys(OF_THE_BASELINE, "the control repeats the baseline: see that row"),
    )


def first_row(planned: Candidate, result: Outcome, position: int, drift: float = 0.0) -> Measurement:
    """The row of a configuration's first process. `drift`: of the machine, see `Protocol.machine_drift`."""
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
    prepared, collected = result.prepared, result.collected
    if prepared is None or result.sampled is None:
        return row
    row = msgspec.structs.replace(
        row,
        items_per_step=prepared.items_per_step,
        compile_time_s=prepared.compile_time_s,
        device_busy_s=collected.device_busy_s if collected else None,
        graph_breaks=collected.graph_breaks if collected else None,
        counts=collected.counts if collected else None,
        memory=result.memory,
        stages=list(result.stages),
        utilization=utilization(result),
        host=result.host,
        quality=result.quality,
        evidence=collected.evidence if collected else [],
    )
    return with_samples(host_bound(with_range(row, result), result), result, "explore", 1, position, drift)


def with_round(
    row: Measurement, result: Outcome, phase: Phase, index: int, position: int, drift: float = 0.0
) -> Measurement:
    """`row` with one more process's samples; a process that failed changes the row's status."""
    if result.status != "ok":
        flag = UNRELIABLE.flag(f"{result.status} in a later process: {result.reason}")
        if result.status == "unproven":  # only the proof is missing
            row = with_samples(row, result, phase, index, position, drift)
        else:  # its samples are kept, and stand for nothing any more
            row = msgspec.structs.replace(row, fps=None, latency_s=None)
        return msgspec.structs.replace(row, status=result.status, reason=result.reason, flags=[*row.flags, flag])
    row = msgspec.structs.replace(row, phases_s=add_up(row.phases_s, result.phases_s))
    return with_samples(row, result, phase, index, position, drift)


def strict(row: Measurement) -> Measurement:
    """`row` as failed where one of its flags speaks against its figures, as `--strict` asks for."""
    found = [str(flag) for flag in row.flags if flag.fails_strictly]
    if row.status != "ok" or not found:
        return row
    return msgspec.structs.replace(row, status="failed", reason=sentence(f"--strict: {'; '.join(found)}"))


def allowed(row: Measurement, allow: list[str]) -> Measurement:
    """`row` with its flags of the kinds in `allow` marked, so that they are shown and gate nothing.

    Its rounds keep theirs as they are: what is allowed may be relied upon, but what is undisturbed is still better.
    """
    return msgspec.structs.replace(row, flags=[flag.under(allow) for flag in row.flags])


def add_up(phases: Mapping[str, float], more: Mapping[str, float]) -> dict[str, float]:
    """Seconds by phase over several processes."""
    return {name: round(phases.get(name, 0.0) + more.get(name, 0.0), 4) for name in dict.fromkeys([*phases, *more])}


def with_samples(
    row: Measurement, result: Outcome, phase: Phase, index: int, position: int, drift: float
) -> Measurement:
    """`row` with the samples of `result` added, and the figures that follow from all samples."""
    sampled, prepared = result.sampled, result.prepared
    if sampled is None or prepared is None or row.items_per_step is None:
        return row
    part = Round(
        phase=phase,
        index=index,
        position=position,
        started_at=result.started_at,
        samples=len(sampled.samples_s),
        iterations_per_sample=sampled.iterations_per_sample,
        warmup_iterations=prepared.warmup_iterations,
        median_s=statistics.median(sampled.samples_s),
        device_median_s=statistics.median(sampled.device_samples_s) if sampled.device_samples_s else None,
        turns=list(result.turns),
        shared_with=list(result.shared_with),
        flags=list(result.flags),
    )
    row = msgspec.structs.replace(
        row,
        samples_s=[*row.samples_s, *sampled.samples_s],
        device_samples_s=[*row.device_samples_s, *(sampled.device_samples_s or [])],
        rounds=[*row.rounds, part],
    )
    figures = latency(*latest(row), drift)
    return msgspec.structs.replace(
        row,
        latency_s=figures,
        fps=row.items_per_step / figures.median if row.items_per_step and figures.median > 0 else None,
        flags=merged([part.flags for part in row.rounds]),
    )


def with_range(row: Measurement, result: Outcome) -> Measurement:
    """`row` with the range of its values, or why there is none."""
    if result.range is None:
        reason = "it is taken only of a process that runs alone"
    elif result.range.found is None:
        reason = result.range.reason
    else:
        return msgspec.structs.replace(row, value_range=result.range.found)
    return msgspec.structs.replace(row, unavailable={**row.unavailable, "value_range": reason})


def host_bound(row: Measurement, result: Outcome) -> Measurement:
    """`row` with the host's share of its step, and why that or the GPU's busy time is missing."""
    row = msgspec.structs.replace(row, host_bound_fraction=host_bound_fraction(result))
    on_cpu = result.sampled is not None and result.sampled.device_samples_s is None
    missing: dict[str, str] = {}
    if row.device_busy_s is None:
        lost = "the profiled step was lost"
        recorded = "the profiler recorded none, or not all, of the step's GPU kernels"
        missing["device_busy_s"] = lost if result.proof_lost else recorded
    if row.host_bound_fraction is None:
        waits = "the step waits for the GPU, so that the host's own time is not known"
        missing["host_bound_fraction"] = waits if waits_for_gpu(result) else "the host's time was not measured"
    if on_cpu:
        missing = dict.fromkeys(missing, "a CPU is host and device at once")
    return msgspec.structs.replace(row, unavailable={**row.unavailable, **missing})


def utilization(result: Outcome) -> Utilization | None:
    """What the monitor saw, with the energy of one item."""
    seen, prepared, sampled = result.utilization, result.prepared, result.sampled
    if seen is None or prepared is None or sampled is None:
        return seen
    if seen.energy_joules is None:
        reason = seen.unavailable.get("energy_joules", "the energy was not read")
        unavailable = {**seen.unavailable, "energy_per_item_joules": reason}
        return msgspec.structs.replace(seen, unavailable=unavailable)
    items = len(sampled.samples_s) * sampled.iterations_per_sample * prepared.items_per_step
    return msgspec.structs.replace(seen, energy_per_item_joules=seen.energy_joules / items)
