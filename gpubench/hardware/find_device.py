"""Finds the device that torch measures on through the library of its maker."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gpubench.hardware.amd import AmdSmi
from gpubench.hardware.monitored import MonitoredDevice
from gpubench.hardware.nvml import Nvml
from gpubench.hardware.nvml_call import DRIVER_NOT_LOADED, FOREIGN, LIBRARY_NOT_FOUND, Unavailable

# No NVIDIA driver on this machine: then torch's "cuda" may be an AMD GPU, which ROCm builds call so.
ABSENT = (LIBRARY_NOT_FOUND, DRIVER_NOT_LOADED)


APPLE = Unavailable(
    "Apple's Metal reports memory to the process that uses it only (torch.mps), and clocks, power and utilization to "
    "administrators only"
)


# What every process is given that looks at CUDA, unless the user has set it.
CUDA_ENVIRONMENT = {
    # NVML answers torch.cuda.is_available() then; the CUDA runtime's answer would break forked children.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    # The same device numbers in NVML, nvidia-smi and torch.
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
}


@dataclass(frozen=True)
class DeviceAccess:
    """A device to monitor, or why there is none; `close` ends the library that it was found through."""

    device: MonitoredDevice | Unavailable | None  # None: a CPU
    close: Callable[[], None] = lambda: None


def find_device(
    kind: str, uuid: str | None = None, index: int = 0, environment: Mapping[str, str] | None = None
) -> DeviceAccess:
    """The device of `kind` ("cpu", "cuda", "mps") with torch's UUID, or else the one that it counts as `index`.

    `environment` is that of the process that counts; by default as gpubench's own processes have it.
    """
    if kind == "cpu":
        return DeviceAccess(None)
    if kind == "mps":
        return DeviceAccess(APPLE)
    nvml = Nvml.open()
    if isinstance(nvml, Unavailable):
        if nvml.code not in (*ABSENT, FOREIGN):
            return DeviceAccess(nvml)
        smi = AmdSmi.open()
        if isinstance(smi, Unavailable):
            return DeviceAccess(nvml if nvml.code == FOREIGN else Unavailable(f"{nvml.reason}; {smi.reason}"))
        return DeviceAccess(smi.device(uuid), smi.close)
    return DeviceAccess(
        nvml.find(uuid, index, {**CUDA_ENVIRONMENT, **os.environ} if environment is None else environment), nvml.close
    )
