"""An Apple GPU, of which nothing can be read from outside the process that uses it."""

from __future__ import annotations

from gpubench.hardware.monitored import GpuSample, GpuState, Process
from gpubench.hardware.nvml_call import Unavailable

INSIDE_ONLY = (
    "Apple's Metal reports memory to the process that uses it only (torch.mps), and clocks, power and utilization to "
    "administrators only"
)
FIELDS = (
    *("gpu_utilization_percent", "memory_utilization_percent", "memory_used_bytes", "power_watts", "energy_joules"),
    *("temperature_celsius", "sm_clock_mhz", "memory_clock_mhz", "throttle_reasons"),
)
STATE_FIELDS = ("name", "total_memory_bytes", "power_limit_watts", "default_power_limit_watts", "mig", "ecc")


class AppleDevice:
    """The GPU of this machine (a `MonitoredDevice`): every reading is None with the reason."""

    uuid = "mps"

    def sample(self) -> GpuSample:
        """Nothing, with the reason."""
        return GpuSample(unavailable=dict.fromkeys(FIELDS, INSIDE_ONLY))

    def throttle_reasons(self) -> list[str] | Unavailable:
        """Nothing, with the reason."""
        return Unavailable(INSIDE_ONLY)

    def processes(self) -> list[Process] | Unavailable:
        """Nothing, with the reason."""
        return Unavailable(INSIDE_ONLY)

    def process_memory_bytes(self, pid: int) -> int | Unavailable:
        """Nothing, with the reason."""
        return Unavailable(INSIDE_ONLY)

    def state(self) -> GpuState:
        """Nothing, with the reason."""
        values = dict.fromkeys(STATE_FIELDS)
        return GpuState(uuid=self.uuid, **values, unavailable=dict.fromkeys(STATE_FIELDS, INSIDE_ONLY))

    def activity_meter(self) -> Unavailable:
        """Nothing, with the reason."""
        return Unavailable(INSIDE_ONLY)
