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
    intervals = [one for one in read if isinstance(one, Activity)]
    # One that reaches over an edge of the window speaks of other work too.
    inside = [one for one in intervals if start <= one.since and one.until <= end]
    known = [(getattr(one, name), one.until - one.since) for one in inside if getattr(one, name) is not None]
    if known:
        values = [value for value, _ in known]
        mean = sum(value * seconds for value, seconds in known) / sum(seconds for _, seconds in known)
        return Reading(mean=mean, min=min(values), max=max(values), count=len(values))
    reasons = [one.unavailable[name] for one in inside or intervals if name in one.unavailable]
    reasons = reasons or [one.reason for one in read if isinstance(one, Unavailable)]
    if reasons:
        return Unavailable(reasons[-1])
    return Unavailable(f"no interval between two readings of its counter lies in the window of {end - start:.2f} s")
