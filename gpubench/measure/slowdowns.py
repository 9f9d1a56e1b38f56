"""Which thermal and power-supply slowdowns a window of readings has: pure, like `readings`."""

from __future__ import annotations

from collections.abc import Sequence

from gpubench.hardware.monitored import EVENT_REASONS, SLOWDOWNS
from gpubench.hardware.nvml_call import Unavailable
from gpubench.measure.readings import MonitorSample


def slowdowns(samples: Sequence[MonitorSample], start: float, end: float) -> list[str] | Unavailable:
    """Each slowdown with how many readings had it, such as "hw_thermal_slowdown (3 of 40 readings)"; empty: none.

    Where no reading fell into the window, those next to it on both sides count.
    """
    inside = [sample for sample in samples if start <= sample.at <= end] or _neighbours(samples, start, end)
    bits = [sample.gpu.throttle_bits for sample in inside if sample.gpu and sample.gpu.throttle_bits is not None]
    if not bits:
        unread = [sample.gpu.unavailable for sample in inside if sample.gpu]
        reasons = [reasons["throttle_reasons"] for reasons in unread if "throttle_reasons" in reasons]
        return Unavailable(reasons[-1] if reasons else f"no reading fell into the window of {end - start:.2f} s")
    counts = {
        name: sum(bool(value & bit) for value in bits) for bit, name in EVENT_REASONS.items() if name in SLOWDOWNS
    }
    return [f"{name} ({count} of {len(bits)} readings)" for name, count in counts.items() if count]


def _neighbours(samples: Sequence[MonitorSample], start: float, end: float) -> list[MonitorSample]:
    before = [sample for sample in samples if sample.at < start][-1:]
    after = [sample for sample in samples if sample.at > end][:1]
    return [*before, *after]
