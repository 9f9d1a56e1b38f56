"""Readings of one NVIDIA GPU, or of one MIG instance of it, through NVML. Needs no torch and no CUDA context."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from gpubench.hardware.gpm import GpmMeter
from gpubench.hardware.monitored import Gatherer, GpuSample, GpuState, Process
from gpubench.hardware.nvml_call import (
    CLOCK_MEM,
    CLOCK_SM,
    NOT_SUPPORTED,
    TEMPERATURE_GPU,
    Unavailable,
    attempt,
    plausible,
    where_known,
)

CARD_ONLY = "NVML knows this of the whole card only, and this is one MIG instance of it"

# Beyond these, what NVML gives is no reading: drivers fill in -1, as 4294967295 or 18446744073709551615.
MOST_PERCENT = 100
MOST_BYTES = 2**48
MOST_MILLIWATTS = 10_000_000
MOST_MILLIJOULES = 2**53  # 285 years at 1 kW
MOST_CELSIUS = 200
MOST_MHZ = 100_000
MOST_BITS = 2**31  # event reasons: all known ones are far below
MOST_PID = 2**30  # Linux allows 2**22 (proc(5), pid_max)


class NvmlDevice:
    """One device (a `MonitoredDevice`). Every method gives a value or `Unavailable`; none raises for an answer."""

    def __init__(self, handle: Any, uuid: str | None, card: Any | None = None) -> None:
        self.handle = handle
        self.uuid = uuid  # None: this kind of board has none
        self.is_mig_instance = card is not None
        self.card = handle if card is None else card  # what has the clocks, the sensors and the power supply
        self._names: dict[int, str | None] = {}  # of the processes listed last

    def _whole(self, function: str) -> Any:
        return Unavailable(CARD_ONLY) if self.is_mig_instance else attempt(function, self.handle)

    def sample(self) -> GpuSample:
        """The monitored readings of this moment."""
        got = Gatherer()
        rates = self._whole("nvmlDeviceGetUtilizationRates")
        for name, part in (("gpu_utilization_percent", "gpu"), ("memory_utilization_percent", "memory")):
            got.put(
                name,
                plausible(where_known(lambda rates, part=part: getattr(rates, part), rates), 0, MOST_PERCENT),
                float,
            )
        got.put("memory_used_bytes", self._memory("used"))
        power = plausible(self._whole("nvmlDeviceGetPowerUsage"), 0, MOST_MILLIWATTS)
        got.put("power_watts", power, lambda milliwatts: milliwatts / 1000)
        energy = plausible(self._whole("nvmlDeviceGetTotalEnergyConsumption"), 0, MOST_MILLIJOULES)
        got.put("energy_millijoules", energy, int, told="energy_joules")
        temperature = attempt("nvmlDeviceGetTemperature", self.card, TEMPERATURE_GPU)
        got.put("temperature_celsius", plausible(temperature, 0, MOST_CELSIUS), float)
        for name, kind in (("sm_clock_mhz", CLOCK_SM), ("memory_clock_mhz", CLOCK_MEM)):
            got.put(name, plausible(attempt("nvmlDeviceGetClockInfo", self.card, kind), 0, MOST_MHZ), float)
        got.put("throttle_bits", plausible(self._event_reasons(), 0, MOST_BITS), int, told="throttle_reasons")
        return GpuSample(**got.values, unavailable=got.unavailable)

    def _memory(self, part: str) -> int | Unavailable:
        """`used` or `total` bytes."""
        info = attempt("nvmlDeviceGetMemoryInfo", self.handle)
        bytes_: int | Unavailable = plausible(where_known(lambda info: int(getattr(info, part)), info), 0, MOST_BYTES)
        return bytes_

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
                if unknown := [entry.pid for entry in listed if not 0 < entry.pid <= MOST_PID]:
                    return Unavailable(f"NVML lists a process with the id {unknown[0]}, which no process has")
                # Asked while the process lives: whoever reads the report asks after it has ended.
                self._names = {
                    entry.pid: self._names[entry.pid] if entry.pid in self._names else _program(entry.pid)
                    for entry in listed
                }
                return [
                    Process(int(entry.pid), _known(entry.usedGpuMemory), self._names[entry.pid]) for entry in listed
                ]
        return Unavailable(listed.reason)

    def total_memory_bytes(self) -> int | Unavailable:
        """Memory of the card or of the MIG instance, in bytes."""
        return where_known(
            lambda total: total or Unavailable("NVML gave 0 bytes, which cannot be"), self._memory("total")
        )

    def state(self) -> GpuState:
        """Name, memory, power limits and modes."""
        got = Gatherer()
        got.put("name", attempt("nvmlDeviceGetName", self.handle))
        got.put("total_memory_bytes", self.total_memory_bytes())
        limit = plausible(attempt("nvmlDeviceGetEnforcedPowerLimit", self.card), 1, MOST_MILLIWATTS)
        got.put("power_limit_watts", limit, lambda milliwatts: milliwatts / 1000)
        default = plausible(attempt("nvmlDeviceGetPowerManagementDefaultLimit", self.card), 1, MOST_MILLIWATTS)
        got.put("default_power_limit_watts", default, lambda milliwatts: milliwatts / 1000)
        modes = attempt("nvmlDeviceGetMigMode", self.card)
        if isinstance(modes, Unavailable) and modes.code == NOT_SUPPORTED:
            modes = [0]  # a card that cannot be split is not split
        got.put("mig", plausible(where_known(lambda modes: modes[0], modes), 0, 1), bool)
        ecc = attempt("nvmlDeviceGetEccMode", self.card)
        got.put("ecc", plausible(where_known(lambda modes: modes[0], ecc), 0, 1), bool)
        return GpuState(uuid=self.uuid, **got.values, unavailable=got.unavailable)

    def activity_meter(self) -> GpmMeter | Unavailable:
        """A meter of multiprocessors, tensor cores and DRAM; the caller closes it."""
        instance = self._gpu_instance() if self.is_mig_instance else None
        return instance if isinstance(instance, Unavailable) else GpmMeter.open(self.card, instance)

    def _gpu_instance(self) -> int | Unavailable:
        """The id of the GPU instance that this MIG device has to itself."""
        shape = attempt("nvmlDeviceGetAttributes_v2", self.handle)
        if isinstance(shape, Unavailable):
            return Unavailable(f"the shape of this MIG instance cannot be read: {shape.reason}")
        if shape.computeInstanceSliceCount < shape.gpuInstanceSliceCount:
            return Unavailable("it is counted over a whole GPU instance, which this MIG device may share with others")
        instance: int | Unavailable = attempt("nvmlDeviceGetGpuInstanceId", self.handle)
        return instance


def _known(used: int | None) -> int | None:
    return used if used is not None and used <= MOST_BYTES else None


def _program(pid: int) -> str | None:
    name = attempt("nvmlSystemGetProcessName", pid)
    # The last part only: a whole path can hold a person's name, and reports are shared.
    words = [] if isinstance(name, Unavailable) else PurePath(name).name.split()
    return words[0] if words else None
