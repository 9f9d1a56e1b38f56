"""What the monitor reads of a GPU, whoever made it: plain data, and the interface that each maker's device offers.

The names of fields and of clock event reasons are NVML's; other makers' devices give the nearest reading or none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from gpubench.hardware.nvml_call import Unavailable

# Bit -> name, from nvml.h (nvmlClocksEventReasons; the last two nvmlClocksThrottleReasons). Written out because older
# bindings have other names for them, or none.
EVENT_REASONS = {
    0x001: "gpu_idle",
    0x002: "applications_clocks_setting",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake",
    0x100: "display_clock_setting",
    0x200: "board_limit",
    0x400: "reliability",  # the voltage that is safe for years: how a card boosts, as the two limits on power are
}
# Above this utilization the GPU works for somebody: an idle one with a display reads 0 to 3 %.
BUSY_PERCENT = 5.0
# Heat or the power supply holds the clocks down: a measurement under one of these is worth nothing.
# The software power cap is not among them: it is how a card behaves under load.
SLOWDOWNS = frozenset({"hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake"})


def decode_reasons(bits: int) -> list[str]:
    """The names of the clock event (throttle) reasons in `bits`."""
    known = [name for bit, name in EVENT_REASONS.items() if bits & bit]
    rest = bits & ~sum(EVENT_REASONS)
    return known + ([f"unknown_{rest:#x}"] if rest else [])


@dataclass(frozen=True)
class Process:
    """A process with a compute context on the device."""

    pid: int
    used_bytes: int | None  # None: the driver does not say
    name: str | None = None  # of its program, without the path and the arguments; None: unknown

    def __str__(self) -> str:
        known = f" ({self.name})" if self.name else ""
        return f"pid {self.pid}{known}" + (f", {self.used_bytes / 2**20:.0f} MiB" if self.used_bytes else "")


@dataclass(frozen=True)
class GpuSample:
    """The device at one moment; a field that could not be read is None and named in `unavailable`."""

    gpu_utilization_percent: float | None = None
    memory_utilization_percent: float | None = None
    memory_used_bytes: int | None = None
    power_watts: float | None = None
    energy_millijoules: int | None = None  # since the driver was loaded
    temperature_celsius: float | None = None
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    throttle_bits: int | None = None
    unavailable: dict[str, str] = field(default_factory=dict)

    @property
    def throttle_reasons(self) -> list[str] | None:
        """Names of the clock event reasons, or None where they could not be read."""
        return None if self.throttle_bits is None else decode_reasons(self.throttle_bits)


@dataclass(frozen=True)
class GpuState:
    """What does not change while a measurement runs."""

    name: str | None
    uuid: str | None
    total_memory_bytes: int | None
    power_limit_watts: float | None  # enforced
    default_power_limit_watts: float | None
    mig: bool | None  # the card is split into MIG instances
    ecc: bool | None
    unavailable: dict[str, str]

    def reading(self, name: str) -> Any:
        """The field `name`, or why it is None."""
        value = getattr(self, name)
        return Unavailable(self.unavailable[name]) if value is None else value


@dataclass(frozen=True)
class Activity:
    """Means between two moments (`time.monotonic()`) from the device's own counters, in percent."""

    since: float
    until: float
    sm_activity_percent: float | None = None
    tensor_activity_percent: float | None = None
    dram_activity_percent: float | None = None
    unavailable: dict[str, str] = field(default_factory=dict)


class ActivityMeter(Protocol):
    """Reads activity counters that mean something between two readings only. Holds memory until it is closed."""

    def read(self) -> Activity | Unavailable | None:
        """The means since the reading before; None at the first, or where it came too early to tell."""

    def close(self) -> None:
        """Gives back what it holds."""


class MonitoredDevice(Protocol):
    """One GPU seen from outside the process that uses it. Nothing raises for what the driver answers."""

    def sample(self) -> GpuSample:
        """The monitored readings of this moment."""

    def processes(self) -> list[Process] | Unavailable:
        """The processes that have a compute context on the device."""

    def total_memory_bytes(self) -> int | Unavailable:
        """Memory of the device, in bytes."""

    def activity_meter(self) -> ActivityMeter | Unavailable:
        """A meter of this device's units; the caller closes it."""


# NVIDIA's multi-process service computes for the processes that connect to it, and is nobody's program itself.
SERVICE = "nvidia-cuda-mps-server"


def other_processes(listed: Iterable[Process], ours: frozenset[int], *, we_use_it: bool) -> list[Process] | Unavailable:
    """Those of `listed` that are not ours. `we_use_it`: a process of ours surely has a context on the device."""
    processes = list(listed)
    others = [process for process in processes if process.pid not in ours and process.name != SERVICE]
    if we_use_it and not any(process.pid in ours for process in processes):
        if any(process.name == SERVICE for process in processes):
            return Unavailable(f"{SERVICE} is listed in the place of the processes that compute through it")
        # Accusing the only listed process would often mean accusing ourselves.
        return Unavailable(
            "the driver does not list this benchmark's own process under its id, so it cannot be told from others "
            "(inside a container process ids differ from the driver's)"
        )
    return others


def memory_of(listed: list[Process] | Unavailable, pid: int) -> int | Unavailable:
    """Bytes of device memory that the entry of `pid` tells."""
    if isinstance(listed, Unavailable):
        return listed
    for process in listed:
        if process.pid == pid:
            if process.used_bytes is None:
                return Unavailable("the driver does not report memory by process")
            return process.used_bytes
    return Unavailable(
        f"the driver lists no process {pid} on this device (inside a container process ids differ from the driver's)"
    )


class Gatherer:
    """Collects values by field, and the reason of each that is missing."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.unavailable: dict[str, str] = {}

    def put(self, name: str, value: Any, convert: Callable[[Any], Any] = lambda value: value, told: str = "") -> None:
        """Keeps `convert(value)`, or the reason where `value` is `Unavailable`; `told`: its name in reports."""
        if isinstance(value, Unavailable):
            self.values[name], self.unavailable[told or name] = None, value.reason
        else:
            self.values[name] = convert(value)
