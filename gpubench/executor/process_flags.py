"""Which flags a process earned, and the flags of a row from those of its processes."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from gpubench.executor.outcome import Outcome
from gpubench.flags import (
    BUSY_CORES,
    CONTAMINATED,
    GROWING_MEMORY,
    HOST_BOUND,
    HOST_BOUND_SHARE,
    IDLE_CORES,
    IDLE_SHARE,
    INTERRUPTED,
    MAJOR_FAULTS,
    PARTLY_CHECKED,
    POWER_CAPPED,
    QUALITY_UNCHECKED,
    SHORT_WARMUP,
    STOPPED_BY_TIME,
    SWAPPED,
    THROTTLED,
    UNSTEADY,
    Flag,
)
from gpubench.measure.memory import LEAK_BYTES
from gpubench.measure.steady import drift
from gpubench.report.model import HostUse
from gpubench.text import plural, times
from gpubench.units import format_bytes, format_duration, format_percent


def flags_of(
    result: Outcome, busy_before: str = "", discarded: Sequence[str] = (), stopped: Sequence[float] = ()
) -> tuple[Flag, ...]:
    """All flags of one process that ran to its end.

    `busy_before`: why the device was not free before the run. `discarded`: the slowdown reasons of each sampling that
    was thrown away. `stopped`: for how many seconds it was stopped in each that was thrown away for that.
    """
    prepared, sampled, collected = result.prepared, result.sampled, result.collected
    if prepared is None or sampled is None:
        return ()
    flags = [*prepared.flags, *(collected.flags if collected else ())]
    warmed = prepared.warmup_iterations
    if prepared.steady is False:
        flags.append(UNSTEADY.flag(f"the warm-up's {plural(warmed, 'iteration')} did not settle"))
    elif prepared.steady is None:
        flags.append(
            SHORT_WARMUP.flag(f"{plural(warmed, 'iteration is', 'iterations are')} too few to tell if it is steady")
        )
    # Interleaved turns drift with the machine, which the other configurations of the round share.
    if not result.turns and (change := drift(sampled.samples_s)) is not None:
        flags.append(UNSTEADY.flag(f"its step time changed by {format_percent(change)} during sampling"))
    flags += _contaminated(result, busy_before)
    if result.host:
        flags += _swapped(result.host)
    if discarded:
        reasons = ", ".join(dict.fromkeys(discarded))
        flags.append(THROTTLED.flag(f"{reasons}; sampled again after cooling down, {times(len(discarded))}"))
    if stopped:
        words = f"stopped for {format_duration(sum(stopped))} while it was sampled"
        flags.append(INTERRUPTED.flag(f"{words}; sampled again, {times(len(stopped))}"))
    if result.utilization and "sw_power_cap" in (result.utilization.throttle_reasons or ()):
        flags.append(POWER_CAPPED.flag("the device ran at its power limit, as it does under load"))
    if waits_for_host(result) and (fraction := host_bound_fraction(result)):
        flags.append(HOST_BOUND.flag(f"the host needs {fraction:.0%} of the step's time to enqueue it"))
    if sampled.unmet:
        flags.append(STOPPED_BY_TIME.flag(sampled.unmet))
    if result.quality and result.quality.passed is None:
        flags.append(QUALITY_UNCHECKED.flag(result.quality.reason))
    elif prepared.quality.not_compared:
        flags.append(PARTLY_CHECKED.flag(prepared.quality.not_compared))
    growth = (result.memory and result.memory.growth_bytes_per_iteration) or 0
    if growth >= LEAK_BYTES:
        flags.append(GROWING_MEMORY.flag(f"{format_bytes(growth)} more with every step"))
    return tuple(flags)


def host_bound_fraction(result: Outcome) -> float | None:
    """The host's time to enqueue a step on an idle GPU, as a share of the step's in a row of many.

    None on a CPU, and for a step that waits for the GPU itself: the host's own time is then not known.
    """
    prepared, step_s = result.prepared, _step_s(result)
    if prepared is None or prepared.enqueue_s is None or not step_s or waits_for_gpu(result):
        return None
    return min(1.0, prepared.enqueue_s / step_s)


def waits_for_host(result: Outcome) -> bool | None:
    """Whether the GPU waits for the host in a good part of the step; None where that is not known."""
    fraction = host_bound_fraction(result)
    if _idle_share(result) <= IDLE_SHARE:
        return False  # it is busy, however long the host takes
    return None if fraction is None else fraction > HOST_BOUND_SHARE


def waits_for_gpu(result: Outcome) -> bool:
    """Whether the profiled step waited for the GPU."""
    counts = result.collected.counts if result.collected else None
    return bool(counts and counts.synchronizations)


def _idle_share(result: Outcome) -> float:
    """The share of the step in which the GPU did nothing; 1 where that is not known."""
    step_s, collected = _step_s(result), result.collected
    if not step_s or collected is None or collected.device_busy_s is None:
        return 1.0
    return 1 - collected.device_busy_s / step_s


def _step_s(result: Outcome) -> float:
    return statistics.median(result.sampled.samples_s) if result.sampled and result.sampled.samples_s else 0.0


def cores_matter(result: Outcome) -> bool:
    """Whether others on the cores change the figure: always on a CPU; on a GPU where the step waits for the host.

    Also where too few cores were idle to launch kernels from. Both as long as it is not known to be otherwise.
    """
    on_gpu = result.sampled is not None and result.sampled.device_samples_s is not None
    idle = result.host.idle_cores if result.host else None
    return not on_gpu or waits_for_host(result) is not False or idle is None or idle < IDLE_CORES


def _contaminated(result: Outcome, busy_before: str) -> list[Flag]:
    """Whether others used the device or the cores meanwhile, and who; `busy_before`: the device, before the run."""
    utilization, host, details = result.utilization, result.host, []
    cores = cores_matter(result)
    if utilization and utilization.other_processes:
        details.append(f"on the device as well: {', '.join(utilization.other_processes)}")
    if cores and host and (host.other_cores or 0) > BUSY_CORES:
        who = f", most of it {host.busiest_other}" if host.busiest_other else ""
        details.append(f"other processes kept {host.other_cores:.1f} cores busy{who}")
    if cores and host and (host.steal_cores or 0) > BUSY_CORES:
        details.append(f"the hypervisor took {host.steal_cores:.1f} cores away")
    if host and host.quota_throttled_s:
        details.append(f"the control group's CPU quota stopped it for {host.quota_throttled_s:.2f} s")
    if busy_before:
        details.append(f"before the run {busy_before}")
    return [CONTAMINATED.flag(detail) for detail in details[:1]]  # one flag of a kind: the first says most


def _swapped(host: HostUse) -> list[Flag]:
    if host.swapped_bytes:
        return [SWAPPED.flag(f"{format_bytes(host.swapped_bytes)} of its memory were in swap")]
    if (host.major_faults or 0) > MAJOR_FAULTS:
        return [SWAPPED.flag(f"{host.major_faults} pages were read from disk during sampling")]
    return []


def merged(processes: Sequence[Iterable[Flag]]) -> list[Flag]:
    """The flags of a row from those of its processes: each kind once, with how many processes had it."""
    by_kind: dict[str, list[Flag]] = {}
    for flags in processes:
        for name, flag in {flag.kind: flag for flag in flags}.items():
            by_kind.setdefault(name, []).append(flag)
    total = len(processes)
    return [
        flags[0]
        if len(flags) == total and len(set(flags)) == 1
        else replace(flags[0], detail=f"in {len(flags)} of {total} processes: {flags[0].detail}")
        for flags in by_kind.values()
    ]
