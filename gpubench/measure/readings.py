"""From readings to a `Utilization`: pure, so that it can be tested without a device or a clock."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from gpubench.hardware.monitored import (
    EVENT_REASONS,
    SLOWDOWNS,
    Activity,
    Gatherer,
    GpuSample,
    MonitoredDevice,
    Process,
    decode_reasons,
    other_processes,
)
from gpubench.hardware.nvml_call import Unavailable
from gpubench.measure.process_usage import Usage
from gpubench.report.model import Reading, Utilization

# NVML's utilization is an average over the last 1/6 to 1 s, its power (on most cards since Ampere) over the last 1 s
# (nvml.h). So a reading speaks of a window only if it is taken 1 s into it, and 1 s of such readings is the least.
AVERAGED_S = 1.0
LEAST_WINDOW_S = 2 * AVERAGED_S
LEAST_STEP_S = 0.01  # a CPU clock's difference over less says more about the reading than about the process
AVERAGED = ("gpu_utilization_percent", "memory_utilization_percent", "power_watts")
ACTIVITY_FIELDS = ("sm_activity_percent", "tensor_activity_percent", "dram_activity_percent")
INSTANT = ("memory_used_bytes", "temperature_celsius", "sm_clock_mhz", "memory_clock_mhz")
GPU_FIELDS = (*AVERAGED, *INSTANT, *ACTIVITY_FIELDS, "energy_joules", "throttle_reasons", "other_processes")
PROCESS_FIELDS = ("process_cpu_percent", "process_resident_bytes")


@dataclass(frozen=True)
class MonitorSample:
    """All that was read at one moment, `at` in `time.monotonic()` seconds."""

    at: float
    usage: Usage | Unavailable
    usage_at: float | None = None  # where that was noticeably earlier
    gpu: GpuSample | None = None
    processes: list[Process] | Unavailable | None = None  # None: not looked at this time
    activity: Activity | Unavailable | None = None  # of the time since the reading before; None: none ended here


def summarize(
    samples: Sequence[MonitorSample],
    start: float,
    end: float,
    *,
    pid: int,
    device: MonitoredDevice | Unavailable | None,
    ours: frozenset[int],
    error: tuple[float, str] | None = None,
) -> Utilization:
    """The readings between `start` and `end`; what is None has its reason in `unavailable`."""
    gathered = Gatherer()
    if error is not None and error[0] <= end:
        return Utilization(unavailable=dict.fromkeys((*GPU_FIELDS, *PROCESS_FIELDS), error[1]))
    inside = [sample for sample in samples if start <= sample.at <= end]
    gathered.put("process_cpu_percent", _cpu_percent(samples, start, end, pid))
    resident = [float(s.usage.resident_bytes) for s in inside if isinstance(s.usage, Usage)]
    gathered.put("process_resident_bytes", _reading(resident) or _no_usage(inside, start, end))
    if device is None or isinstance(device, Unavailable):
        reason = device.reason if device else "the device is a CPU, which NVML does not know"
        gathered.unavailable |= dict.fromkeys(GPU_FIELDS, reason)
        return Utilization(**gathered.values, unavailable=gathered.unavailable)
    for name in INSTANT:
        gathered.put(name, _gpu_reading(inside, name, start, end))
    for name in AVERAGED:
        gathered.put(name, _averaged(inside, name, start, end))
    activities = [sample.activity for sample in samples]
    for name in ACTIVITY_FIELDS:
        gathered.put(name, activity_reading(activities, name, start, end))
    gathered.put("energy_joules", _energy(samples, start, end))
    bits = _throttle_bits(inside) or _unread(inside, "throttle_reasons", start, end)
    gathered.put("throttle_reasons", bits, lambda bits: decode_reasons(reduce(int.__or__, bits)))
    gathered.put("other_processes", _others(samples, start, end, ours))
    return Utilization(**gathered.values, unavailable=gathered.unavailable)


def _reading(values: Sequence[float]) -> Reading | None:
    if not values:
        return None
    return Reading(mean=sum(values) / len(values), min=min(values), max=max(values), count=len(values))


def _empty(start: float, end: float) -> Unavailable:
    return Unavailable(f"no reading fell into the window of {end - start:.2f} s")


def _no_usage(inside: Sequence[MonitorSample], start: float, end: float) -> Unavailable:
    reasons = [sample.usage for sample in inside if isinstance(sample.usage, Unavailable)]
    return reasons[-1] if reasons else _empty(start, end)


def _cpu_percent(samples: Sequence[MonitorSample], start: float, end: float, pid: int) -> Reading | Unavailable:
    """Mean over the window from the CPU clock's difference; min and max from neighbouring readings."""
    points = [(s.usage_at or s.at, s.usage.cpu_s) for s in samples if isinstance(s.usage, Usage)]
    inside = [(at, cpu_s) for at, cpu_s in points if start <= at <= end]
    known = sorted({*_edge(points, start), *inside, *_edge(points, end)})
    if len(known) < 2:
        ended = bool(points) and points[-1][0] < start
        within = [sample for sample in samples if start <= sample.at <= end]
        return Unavailable(f"process {pid} has ended") if ended else _no_usage(within, start, end)
    (first_at, first), (last_at, last) = known[0], known[-1]
    mean = (last - first) / (last_at - first_at) * 100
    steps = [
        (high - low) / (after - before) * 100
        for (before, low), (after, high) in itertools.pairwise(known)
        if after - before >= LEAST_STEP_S
    ]
    return Reading(mean=mean, min=min([mean, *steps]), max=max([mean, *steps]), count=len(inside))


def _edge(points: Sequence[tuple[float, float]], at: float) -> list[tuple[float, float]]:
    """A growing quantity at the moment `at`, on the line between the readings before and after; empty outside."""
    for (before, low), (after, high) in itertools.pairwise(points):
        if before <= at <= after:
            share = (at - before) / (after - before) if after > before else 0.0
            return [(at, low + share * (high - low))]
    return []


def _last_reason(samples: Sequence[MonitorSample], name: str) -> str | None:
    reasons = [sample.gpu.unavailable[name] for sample in samples if sample.gpu and name in sample.gpu.unavailable]
    return reasons[-1] if reasons else None


def _unread(samples: Sequence[MonitorSample], name: str, start: float, end: float) -> Unavailable:
    reason = _last_reason(samples, name)
    return Unavailable(reason) if reason else _empty(start, end)


def _gpu_reading(samples: Sequence[MonitorSample], name: str, start: float, end: float) -> Reading | Unavailable:
    read = [getattr(sample.gpu, name) for sample in samples if sample.gpu]
    return _reading([float(value) for value in read if value is not None]) or _unread(samples, name, start, end)


def _averaged(inside: Sequence[MonitorSample], name: str, start: float, end: float) -> Reading | Unavailable:
    unread = not any(getattr(sample.gpu, name, None) is not None for sample in inside)
    if end - start >= LEAST_WINDOW_S or unread:  # "not supported" says more than "too short"
        return _gpu_reading(
            [sample for sample in inside if sample.at >= start + AVERAGED_S] or inside, name, start, end
        )
    what = "power" if name == "power_watts" else "utilization"
    return Unavailable(
        f"the window of {end - start:.2f} s is shorter than {LEAST_WINDOW_S:.0f} s: "
        f"NVML's {what} is an average over up to {AVERAGED_S:.0f} s before each reading"
    )


def _energy(samples: Sequence[MonitorSample], start: float, end: float) -> float | Unavailable:
    points = [
        (s.at, float(s.gpu.energy_millijoules)) for s in samples if s.gpu and s.gpu.energy_millijoules is not None
    ]
    edges = [*_edge(points, start), *_edge(points, end)]
    if len(edges) < 2:
        reason = _last_reason(samples, "energy_joules")
        return Unavailable(reason or "the energy counter was not read on both sides of the window")
    between = [value for at, value in points if start <= at <= end]
    values = [edges[0][1], *between, edges[1][1]]
    if any(after < before for before, after in itertools.pairwise(values)):
        return Unavailable("the energy counter went back: the driver was reloaded or the GPU was reset")
    if values[-1] == values[0]:  # no device runs on nothing
        return Unavailable(f"the energy counter did not move within the window of {end - start:.2f} s")
    return (values[-1] - values[0]) / 1000


def _throttle_bits(samples: Sequence[MonitorSample]) -> list[int]:
    return [sample.gpu.throttle_bits for sample in samples if sample.gpu and sample.gpu.throttle_bits is not None]


def _others(
    samples: Sequence[MonitorSample], start: float, end: float, ours: frozenset[int]
) -> list[str] | Unavailable:
    looks = [(s.at, s.processes) for s in samples if s.processes is not None]
    # The list is read less often than the rest: where no look fell into the window, the nearest before it counts.
    inside = [look for at, look in looks if start <= at <= end] or [look for at, look in looks if at < start][-1:]
    if not inside:
        return _empty(start, end)
    judged = [look if isinstance(look, Unavailable) else other_processes(look, ours, we_use_it=True) for look in inside]
    known = [others for others in judged if not isinstance(others, Unavailable)]
    refused = [others for others in judged if isinstance(others, Unavailable)]
    if not known:
        return refused[-1]
    strangers = {process.pid: process for others in known for process in others}
    return [str(process) for _, process in sorted(strangers.items())]


def slowdowns(samples: Sequence[MonitorSample], start: float, end: float) -> list[str] | Unavailable:
    """Each thermal or power-supply slowdown, such as "hw_thermal_slowdown (3 of 40 readings)"; empty: none.

    Where no reading fell into the window, those next to it on both sides count.
    """
    before, after = [s for s in samples if s.at < start], [s for s in samples if s.at > end]
    inside = [s for s in samples if start <= s.at <= end] or [*before[-1:], *after[:1]]
    bits = _throttle_bits(inside)
    if not bits:
        return _unread(inside, "throttle_reasons", start, end)
    counts = {
        name: sum(bool(value & bit) for value in bits) for bit, name in EVENT_REASONS.items() if name in SLOWDOWNS
    }
    return [f"{name} ({count} of {len(bits)} readings)" for name, count in counts.items() if count]


def activity_reading(
    read: Sequence[Activity | Unavailable | None], name: str, start: float, end: float
) -> Reading | Unavailable:
    """`name` in percent over the intervals that lie in the window, the mean weighted by their lengths."""
    intervals = [interval for interval in read if isinstance(interval, Activity)]
    # An interval that crosses an edge of the window includes other work.
    inside = [interval for interval in intervals if start <= interval.since and interval.until <= end]
    read_of = [(getattr(interval, name), interval.until - interval.since) for interval in inside]
    known = [(value, seconds) for value, seconds in read_of if value is not None]
    if known:
        values = [value for value, _ in known]
        mean = sum(value * seconds for value, seconds in known) / sum(seconds for _, seconds in known)
        return Reading(mean=mean, min=min(values), max=max(values), count=len(values))
    reasons = [interval.unavailable[name] for interval in inside or intervals if name in interval.unavailable]
    reasons = reasons or [interval.reason for interval in read if isinstance(interval, Unavailable)]
    if reasons:
        return Unavailable(reasons[-1])
    return Unavailable(f"no interval between two readings of its counter lies in the window of {end - start:.2f} s")
