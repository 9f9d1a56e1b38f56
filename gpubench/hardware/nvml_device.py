"""Readings of one NVIDIA GPU, or of one MIG instance of it, through NVML. Needs no torch and no CUDA context."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

import pynvml

from gpubench.hardware.gpm import GpmMeter
from gpubench.hardware.monitored import Gatherer, GpuSample, GpuState, Process
from gpubench.hardware.nvml_call import Unavailable, attempt, where_known

CARD_ONLY = "NVML knows this of the whole card only, and this is one MIG instance of it"


class NvmlDevice:
    """One device (a `MonitoredDevice`). Every method gives a value or `Unavailable`; none raises for an answer."""

    def __init__(self, handle: Any, uuid: str, card: Any | None = None) -> None:
        self.handle = handle
        self.uuid = uuid
        self.is_mig_instance = card is not None
        self.card = handle if card is None else card  # what has the clocks, the sensors and the power supply
        self._names: dict[int, str | None] = {}  # of the processes listed last

    def _whole(self, function: str) -> Any:
        return Unavailable(CARD_ONLY) if self.is_mig_instance else attempt(function, self.handle)

    def sample(self) -> GpuSample:
        """The monitored readings of this moment."""
        got = Gatherer()
        rates = self._whole("nvmlDeviceGetUtilizationRates")
        got.put("gpu_utilization_percent", rates, lambda rates: float(rates.gpu))
        got.put("memory_utilization_percent", rates, lambda rates: float(rates.memory))
        got.put("memory_used_bytes", attempt("nvmlDeviceGetMemoryInfo", self.handle), lambda info: int(info.used))
        got.put("power_watts", self._whole("nvmlDeviceGetPowerUsage"), lambda milliwatts: milliwatts / 1000)
        got.put("energy_millijoules", self._whole("nvmlDeviceGetTotalEnergyConsumption"), int, told="energy_joules")
        temperature = attempt("nvmlDeviceGetTemperature", self.card, pynvml.NVML_TEMPERATURE_GPU)
        got.put("temperature_celsius", temperature, float)
        got.put("sm_clock_mhz", attempt("nvmlDeviceGetClockInfo", self.card, pynvml.NVML_CLOCK_SM), float)
        got.put("memory_clock_mhz", attempt("nvmlDeviceGetClockInfo", self.card, pynvml.NVML_CLOCK_MEM), float)
        got.put("throttle_bits", self._event_reasons(), int, told="throttle_reasons")
        return GpuSample(**got.values, unavailable=got.unavailable)

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
                # Asked while the process lives: whoever reads the report asks after it has ended.
                self._names = {
                    entry.pid: self._names[entry.pid] if entry.pid in self._names else _program(entry.pid)
                    for entry in listed
                }
                return [Process(int(entry.pid), entry.usedGpuMemory, self._names[entry.pid]) for entry in listed]
        return Unavailable(listed.reason)

    def total_memory_bytes(self) -> int | Unavailable:
        """Memory of the card or of the MIG instance, in bytes."""
        return where_known(lambda info: int(info.total), attempt("nvmlDeviceGetMemoryInfo", self.handle))

    def state(self) -> GpuState:
        """Name, memory, power limits and modes."""
        got = Gatherer()
        got.put("name", attempt("nvmlDeviceGetName", self.handle))
        got.put("total_memory_bytes", self.total_memory_bytes())
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


def _program(pid: int) -> str | None:
    name = attempt("nvmlSystemGetProcessName", pid)
    # The last part only: a whole path can hold a person's name, and reports are shared.
    words = [] if isinstance(name, Unavailable) else PurePath(name).name.split()
    return words[0] if words else None
