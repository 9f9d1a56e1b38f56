"""Readings of one GPU, or of one MIG instance of it, through NVML. Needs no torch and no CUDA context."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import pynvml

from gpubench.hardware.nvml_call import Unavailable, attempt

# Bit -> name, from nvml.h (nvmlClocksEventReasons). Written out because older bindings have other names for them.
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
}
# Heat or the power supply holds the clocks down: a measurement under one of these is worth nothing.
# The software power cap is not among them: it is how a card behaves under load.
SLOWDOWNS = frozenset({"hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake"})

CARD_ONLY = "NVML knows this of the whole card only, and this is one MIG instance of it"


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

    def __str__(self) -> str:
        name = attempt("nvmlSystemGetProcessName", self.pid)
        # The last part only: a whole path can hold a person's name, and reports are shared.
        words = [] if isinstance(name, Unavailable) else PurePath(name).name.split()
        known = f" ({words[0]})" if words else ""
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
    uuid: str
    total_memory_bytes: int | None
    power_limit_watts: float | None  # enforced
    default_power_limit_watts: float | None
    mig: bool | None  # the card is split into MIG instances
    ecc: bool | None
    unavailable: dict[str, str]


def energy_joules(start_millijoules: float, end_millijoules: float) -> float | Unavailable:
    """The energy between two readings of the counter, in joules."""
    if end_millijoules < start_millijoules:
        return Unavailable("the energy counter went back: the driver was reloaded or the GPU was reset")
    return (end_millijoules - start_millijoules) / 1000


def other_processes(listed: Iterable[Process], ours: frozenset[int], *, we_use_it: bool) -> list[Process] | Unavailable:
    """Those of `listed` that are not ours. `we_use_it`: a process of ours surely has a context on the device."""
    processes = list(listed)
    if we_use_it and not any(process.pid in ours for process in processes):
        # Accusing the only listed process would often mean accusing ourselves.
        return Unavailable(
            "NVML does not list this benchmark's own process under its id, so it cannot be told from others "
            "(inside a container process ids differ from the driver's)"
        )
    return [process for process in processes if process.pid not in ours]


class _Gatherer:
    """Collects values by field, and the reason of each that is missing."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.unavailable: dict[str, str] = {}

    def put(self, name: str, value: Any, convert: Callable[[Any], Any] = lambda value: value) -> None:
        if isinstance(value, Unavailable):
            self.values[name], self.unavailable[name] = None, value.reason
        else:
            self.values[name] = convert(value)


class NvmlDevice:
    """One device. Every method gives a value or `Unavailable`; none raises for what the driver answers."""

    def __init__(self, handle: Any, uuid: str, card: Any | None = None) -> None:
        self.handle = handle
        self.uuid = uuid
        self.is_mig_instance = card is not None
        self.card = handle if card is None else card  # what has the clocks, the sensors and the power supply

    def _whole(self, function: str) -> Any:
        return Unavailable(CARD_ONLY) if self.is_mig_instance else attempt(function, self.handle)

    def sample(self) -> GpuSample:
        """The monitored readings of this moment."""
        got = _Gatherer()
        rates = self._whole("nvmlDeviceGetUtilizationRates")
        got.put("gpu_utilization_percent", rates, lambda rates: float(rates.gpu))
        got.put("memory_utilization_percent", rates, lambda rates: float(rates.memory))
        got.put("memory_used_bytes", attempt("nvmlDeviceGetMemoryInfo", self.handle), lambda info: int(info.used))
        got.put("power_watts", self._whole("nvmlDeviceGetPowerUsage"), lambda milliwatts: milliwatts / 1000)
        got.put("energy_joules", self._whole("nvmlDeviceGetTotalEnergyConsumption"), int)
        temperature = attempt("nvmlDeviceGetTemperature", self.card, pynvml.NVML_TEMPERATURE_GPU)
        got.put("temperature_celsius", temperature, float)
        got.put("sm_clock_mhz", attempt("nvmlDeviceGetClockInfo", self.card, pynvml.NVML_CLOCK_SM), float)
        got.put("memory_clock_mhz", attempt("nvmlDeviceGetClockInfo", self.card, pynvml.NVML_CLOCK_MEM), float)
        got.put("throttle_reasons", self._event_reasons(), int)
        values = got.values
        values["energy_millijoules"] = values.pop("energy_joules")
        values["throttle_bits"] = values.pop("throttle_reasons")
        return GpuSample(**values, unavailable=got.unavailable)

    def _event_reasons(self) -> Any:
        bits = attempt("nvmlDeviceGetCurrentClocksEventReasons", self.card)
        if isinstance(bits, Unavailable):  # the name before driver 535
            bits = attempt("nvmlDeviceGetCurrentClocksThrottleReasons", self.card)
        return bits

    def processes(self) -> list[Process] | Unavailable:
        """The processes that have a compute context here, as NVML lists them."""
        listed: Any = Unavailable("")
        for version in ("", "_v2"):  # the binding asks for the third version; drivers before 510 have the second only
            listed = attempt(f"nvmlDeviceGetComputeRunningProcesses{version}", self.handle)
            if not isinstance(listed, Unavailable):
                return [Process(int(entry.pid), entry.usedGpuMemory) for entry in listed]
        return Unavailable(listed.reason)

    def process_memory_bytes(self, pid: int) -> int | Unavailable:
        """Device memory that process `pid` holds, in bytes: its context too, which torch does not count."""
        listed = self.processes()
        if isinstance(listed, Unavailable):
            return listed
        for process in listed:
            if process.pid == pid:
                if process.used_bytes is None:
                    return Unavailable("the driver does not tell memory by process")
                return process.used_bytes
        return Unavailable(
            f"NVML lists no process {pid} on this device (inside a container process ids differ from the driver's)"
        )

    def state(self) -> GpuState:
        """Name, memory, power limits and modes."""
        got = _Gatherer()
        got.put("name", attempt("nvmlDeviceGetName", self.handle))
        got.put("total_memory_bytes", attempt("nvmlDeviceGetMemoryInfo", self.handle), lambda info: int(info.total))
        limit = attempt("nvmlDeviceGetEnforcedPowerLimit", self.card)
        got.put("power_limit_watts", limit, lambda milliwatts: milliwatts / 1000)
        default = attempt("nvmlDeviceGetPowerManagementDefaultLimit", self.card)
        got.put("default_power_limit_watts", default, lambda milliwatts: milliwatts / 1000)
        modes = attempt("nvmlDeviceGetMigMode", self.card)
        if isinstance(modes, Unavailable) and modes.code == pynvml.NVML_ERROR_NOT_SUPPORTED:
            modes = [0]  # a card that cannot be split is not split
        got.put("mig", modes, lambda modes: bool(modes[0]))
        got.put("ecc", attempt("nvmlDeviceGetEccMode", self.card), lambda modes: bool(modes[0]))
        return GpuState(uuid=self.uuid, **got.values, unavailable=got.unavailable)
