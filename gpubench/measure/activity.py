"""From pairs of activity counters to the figures of a window: pure, like `readings`."""

from __future__ import annotations

from collections.abc import Sequence

from gpubench.hardware.monitored import Activity
from gpubench.hardware.nvml_call import Unavailable
from gpubench.report.model import Reading

ACTIVITY_FIELDS = ("sm_activity_percent", "tensor_activity_percent", "dram_activity_percent")


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
