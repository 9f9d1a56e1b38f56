"""What a reader should know of a process's figures beside their status. A flag is `kind: details`."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from gpubench.measure.memory import GRAIN_BYTES
from gpubench.measure.steady import drift
from gpubench.report.model import HostUse, Utilization
from gpubench.units import format_bytes
from gpubench.worker.messages import EvidenceCollected, MemoryRead, Prepared, SamplesTaken

BUSY_CORES = 0.25  # a quarter of a core: the system's own housekeeping stays below 0.1 (seen on an idle machine)
MAJOR_FAULTS = 10  # pages read from disk while sampling: fewer are late loads of code
HOST_BOUND = 0.25  # of the step: above it another batch size or CUDA graphs are worth a try


def flags_of(
    prepared: Prepared,
    sampled: SamplesTaken,
    *,
    memory: MemoryRead | None,
    collected: EvidenceCollected | None,
    utilization: Utilization | None,
    host: HostUse | None,
    busy_before: str,
    discarded: Sequence[str],
    interleaved: bool,
) -> tuple[str, ...]:
    """All flags of one process. `discarded`: the slowdown reasons of each sampling that was thrown away."""
    flags = [*prepared.flags, *(collected.flags if collected else ())]
    if prepared.steady is False:
        flags.append(f"unsteady: the warm-up's {prepared.warmup_iterations} iterations did not settle")
    elif prepared.steady is None:
        flags.append(f"short_warmup: {prepared.warmup_iterations} iterations are too few to tell whether it is steady")
    # Interleaved turns drift with the machine, which the other configurations of the round share.
    if not interleaved and (change := drift(sampled.samples_s)) is not None:
        flags.append(f"unsteady: its steps became {change:+.1%} longer while it was sampled")
    flags += contaminated(utilization, host, busy_before)
    if host and (swapped := _swapped(host)):
        flags.append(swapped)
    if discarded:
        reasons = ", ".join(dict.fromkeys(discarded))
        times = "once" if len(discarded) == 1 else f"{len(discarded)} times"
        flags.append(f"throttled: {reasons}; sampled again after cooling down, {times}")
    if utilization and "sw_power_cap" in (utilization.throttle_reasons or ()):
        flags.append("power_capped: the device ran at its power limit, as it does under load")
    fraction = host_bound_fraction(collected, sampled)
    if fraction is not None and fraction > HOST_BOUND:
        flags.append(f"host_bound: the GPU did nothing in {fraction:.0%} of the step, it waited for the host")
    if sampled.unmet:
        flags.append(f"stopped_by_time: {sampled.unmet}")
    if prepared.quality.passed is None:
        flags.append(f"quality_unchecked: {prepared.quality.reason}")
    if memory and (memory.growth_per_iteration or 0) >= GRAIN_BYTES:
        flags.append(f"growing_memory: {format_bytes(memory.growth_per_iteration or 0)} more with every step")
    return tuple(flags)


def host_bound_fraction(collected: EvidenceCollected | None, sampled: SamplesTaken | None) -> float | None:
    """The share of a step by the wall clock in which no kernel or copy ran on the GPU; None on a CPU."""
    if collected is None or sampled is None or collected.device_busy_s is None or not sampled.samples_s:
        return None
    step_s = statistics.median(sampled.samples_s)
    return min(1.0, max(0.0, 1 - collected.device_busy_s / step_s)) if step_s > 0 else None


def contaminated(utilization: Utilization | None, host: HostUse | None, busy_before: str = "") -> list[str]:
    """Whether others used the device or the cores meanwhile, and who; `busy_before`: the device, before the run."""
    found = []
    if utilization and utilization.other_processes:
        found.append(f"contaminated: on the device as well: {', '.join(utilization.other_processes)}")
    if host and (host.other_cores or 0) > BUSY_CORES:
        who = f", most of it {host.busiest_other}" if host.busiest_other else ""
        found.append(f"contaminated: other processes kept {host.other_cores:.1f} cores busy{who}")
    if host and (host.steal_cores or 0) > BUSY_CORES:
        found.append(f"contaminated: the hypervisor took {host.steal_cores:.1f} cores away")
    if host and host.quota_throttled_s:
        found.append(f"contaminated: the control group's CPU quota held it back for {host.quota_throttled_s:.2f} s")
    if busy_before:
        found.append(f"contaminated: before the run {busy_before}")
    return found[:1]  # one flag of a kind: the first says most


def _swapped(host: HostUse) -> str:
    if host.swapped_bytes:
        return f"swapped: {format_bytes(host.swapped_bytes)} of its memory were in swap"
    if (host.major_faults or 0) > MAJOR_FAULTS:
        return f"swapped: {host.major_faults} pages had to be read from disk while it was sampled"
    return ""


def kind(flag: str) -> str:
    """A flag without its details."""
    return flag.partition(":")[0]


def merged(processes: Sequence[Iterable[str]]) -> list[str]:
    """The flags of a row from those of its processes: each kind once, with how many processes had it."""
    found: dict[str, list[str]] = {}
    for flags in processes:
        for flag in {kind(flag): flag for flag in flags}.values():
            found.setdefault(kind(flag), []).append(flag)
    total = len(processes)
    return [
        flags[0] if total == 1 or (len(set(flags)) == 1 and len(flags) == total)
        else f"{name}: in {len(flags)} of {total} processes: {flags[0].partition(': ')[2]}"
        for name, flags in found.items()
    ]  # fmt: skip
