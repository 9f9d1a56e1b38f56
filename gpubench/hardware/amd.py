"""Readings of one AMD GPU through AMD SMI, where its Python package is installed (it comes with ROCm).

Names and units: AMD SMI Python API reference, rocm.docs.amd.com/projects/amdsmi; `vram_*` are MB in amdsmi.h.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from pathlib import PurePath
from types import ModuleType
from typing import Any

from gpubench.hardware.monitored import Gatherer, GpuSample, Process
from gpubench.hardware.nvml_call import Unavailable, where_known
from gpubench.text import plural

NO_REASONS = "AMD SMI has no quick reading that tells heat from the power limit"
NO_METER = "AMD SMI has no counters of the units inside the chip"
NO_NUMBER = {"N/A", 0xFFFF, 0xFFFFFFFF}  # the library's values for "unknown"


class AmdSmi:
    """AMD SMI, initialized. It needs no HIP context, so the parent of all workers can hold it."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    @classmethod
    def open(cls) -> AmdSmi | Unavailable:
        """AMD SMI ready for use, or why it is not."""
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints where its shared library is missing
                module = importlib.import_module("amdsmi")
        except ImportError:
            return Unavailable("AMD SMI's Python package (amdsmi) is not installed")
        except (OSError, KeyError, AttributeError) as error:
            return Unavailable(f"AMD SMI's shared library cannot be loaded: {error}")
        smi = cls(module)
        failed = smi.attempt("amdsmi_init")
        return failed if isinstance(failed, Unavailable) else smi

    def close(self) -> None:
        """Shuts AMD SMI down; devices found through it can no longer be read."""
        self.attempt("amdsmi_shut_down")

    def attempt(self, function: str, *arguments: object) -> Any:
        """What `amdsmi.<function>(*arguments)` returns, or `Unavailable`."""
        call = getattr(self._module, function, None)
        if call is None:
            return Unavailable(f"the installed amdsmi has no {function}")
        try:
            return call(*arguments)
        except self._module.AmdSmiException as error:
            said = str(error.get_error_info()) if hasattr(error, "get_error_info") else str(error)
            return Unavailable(f"AMD SMI: {' '.join(said.split())}")

    def constant(self, kind: str, name: str) -> Any:
        """A member of one of its enumerations, or `Unavailable` where this version has none."""
        member = getattr(getattr(self._module, kind, None), name, None)
        return Unavailable(f"the installed amdsmi has no {kind}.{name}") if member is None else member

    def device(self, uuid: str | None) -> AmdDevice | Unavailable:
        """The GPU with this UUID as torch reports it; without a match the only one there is."""
        handles = self.attempt("amdsmi_get_processor_handles")
        if isinstance(handles, Unavailable):
            return handles
        for handle in handles:
            if uuid and uuid.casefold() in self._names(handle):
                return AmdDevice(self, handle)
        if len(handles) == 1:
            return AmdDevice(self, handles[0])
        return Unavailable(
            f"AMD SMI lists {plural(len(handles), 'GPU')}, and none of them by the UUID that torch reports"
        )

    def _names(self, handle: Any) -> set[str]:
        """A GPU's UUIDs, and HIP's as torch writes it: the hexadecimal form of its 16 characters."""
        listed = self.attempt("amdsmi_get_gpu_enumeration_info", handle)
        hip = "" if isinstance(listed, Unavailable) else str(listed.get("hip_uuid", ""))
        own = self.attempt("amdsmi_get_gpu_device_uuid", handle)
        digits = hip.removeprefix("GPU-").encode().hex()
        torch_form = "-".join(digits[start:end] for start, end in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32)))
        names = {hip, hip.removeprefix("GPU-"), torch_form, "" if isinstance(own, Unavailable) else str(own)}
        return {name.casefold() for name in names if name.strip("-")}


class AmdDevice:
    """One GPU (a `MonitoredDevice`). Every method gives a value or `Unavailable`; none raises for an answer."""

    def __init__(self, smi: AmdSmi, handle: Any) -> None:
        self._smi, self.handle = smi, handle

    def sample(self) -> GpuSample:
        """The monitored readings of this moment."""
        got = Gatherer()
        activity = self._read("amdsmi_get_gpu_activity")
        got.put("gpu_utilization_percent", number(activity, "gfx_activity"))
        got.put("memory_utilization_percent", number(activity, "umc_activity"))
        used = number(self._read("amdsmi_get_gpu_vram_usage"), "vram_used")
        got.put("memory_used_bytes", used, lambda megabytes: int(megabytes) * 2**20)
        # The first is there from ROCm 6.4 on; of the others each card fills one.
        power = self._read("amdsmi_get_power_info")
        got.put("power_watts", number(power, "socket_power", "current_socket_power", "average_socket_power"))
        got.put("energy_millijoules", self._energy(), told="energy_joules")
        got.put("temperature_celsius", self._temperature())
        got.put("sm_clock_mhz", self._clock("GFX"))
        got.put("memory_clock_mhz", self._clock("MEM"))
        got.put("throttle_bits", Unavailable(NO_REASONS), told="throttle_reasons")
        return GpuSample(**got.values, unavailable=got.unavailable)

    def _read(self, function: str, *arguments: object) -> Any:
        return where_known(lambda *known: self._smi.attempt(function, self.handle, *known), *arguments)

    def _energy(self) -> int | Unavailable:
        counted = self._read("amdsmi_get_energy_count")
        ticks = number(counted, "energy_accumulator", "power")  # the second name until ROCm 6.1
        microjoules = number(counted, "counter_resolution")  # of one tick
        return where_known(lambda ticks, microjoules: int(ticks * microjoules / 1000), ticks, microjoules)

    def _temperature(self) -> float | Unavailable:
        now = self._smi.constant("AmdSmiTemperatureMetric", "CURRENT")
        read: Any = Unavailable("no sensor")
        for sensor in ("EDGE", "HOTSPOT"):  # the data centre cards have the second only
            place = self._smi.constant("AmdSmiTemperatureType", sensor)
            read = self._read("amdsmi_get_temp_metric", place, now)
            if not isinstance(read, Unavailable):
                return float(read)
        return Unavailable(read.reason)

    def _clock(self, kind: str) -> float | Unavailable:
        which = self._smi.constant("AmdSmiClkType", kind)
        return number(self._read("amdsmi_get_clock_info", which), "clk", "cur_clk")  # the second until ROCm 6.0

    def processes(self) -> list[Process] | Unavailable:
        """The processes that use this GPU, as AMD SMI lists them."""
        listed = self._read("amdsmi_get_gpu_process_list")
        if isinstance(listed, Unavailable):
            return listed
        if not all(isinstance(entry, dict) and "pid" in entry for entry in listed):
            return Unavailable("the installed amdsmi lists processes without their ids")
        return [_process(entry) for entry in listed]

    def total_memory_bytes(self) -> int | Unavailable:
        """Memory of the card, in bytes."""
        total = number(self._read("amdsmi_get_gpu_vram_usage"), "vram_total")
        return where_known(lambda megabytes: int(megabytes) * 2**20, total)

    def activity_meter(self) -> Unavailable:
        """None: see `NO_METER`."""
        return Unavailable(NO_METER)


def number(reading: Any, *keys: str) -> float | Unavailable:
    """The first of `keys` that holds a number in a dictionary that AMD SMI gave."""
    if isinstance(reading, Unavailable):
        return reading
    values = [reading[key] for key in keys if key in reading]
    known = [value for value in values if isinstance(value, int | float) and value not in NO_NUMBER]
    return float(known[0]) if known else Unavailable("this GPU does not support it (AMD SMI: N/A)")


def _process(entry: dict[str, Any]) -> Process:
    memory = entry.get("memory_usage") or {}
    used = number(memory, "vram_mem")
    # The last part only: a whole path can hold a person's name, and reports are shared.
    words = PurePath(str(entry.get("name", ""))).name.split()
    name = words[0] if words and str(entry["name"]) != "N/A" else None
    return Process(int(entry["pid"]), None if isinstance(used, Unavailable) else int(used), name)
