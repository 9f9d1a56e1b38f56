"""An NVML library in Python: pynvml's real binding code runs on it and finds its ctypes arguments filled.

def test_something(fake_nvml):            # the fixtures below; import them, or list them in a conftest
    gpu = fake_nvml.add(FakeGpu(uuid="GPU-1"))
    gpu.fails["nvmlDeviceGetPowerUsage"] = NOT_SUPPORTED
    gpu.power_milliwatts = 250_000        # may change between two readings
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pynvml
import pytest

from gpubench.hardware import nvml_call
from gpubench.hardware.nvml import Nvml, NvmlDevice

SUCCESS = 0
NOT_SUPPORTED = pynvml.NVML_ERROR_NOT_SUPPORTED
NO_PERMISSION = pynvml.NVML_ERROR_NO_PERMISSION
FUNCTION_NOT_FOUND = pynvml.NVML_ERROR_FUNCTION_NOT_FOUND

ACTIVITY = {
    pynvml.NVML_GPM_METRIC_SM_UTIL: 80.0,
    pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL: 45.0,
    pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL: 30.0,
}


@dataclass
class FakeGpu:
    """One card, or with `card` one MIG instance of it. Every field may be changed while it is being read."""

    uuid: str = "GPU-00000000-0000-0000-0000-000000000001"
    name: str = "NVIDIA Test Card"
    card: FakeGpu | None = None
    mig: bool = False
    ecc: bool = False
    gpu_utilization: int = 97
    memory_utilization: int = 41
    memory_used: int = 3 * 2**30
    memory_total: int = 16 * 2**30
    power_milliwatts: int = 212_500
    power_limit_milliwatts: int = 300_000
    default_power_limit_milliwatts: int = 300_000
    energy_millijoules: int = 1_000_000
    temperature: int = 64
    sm_clock: int = 2452
    memory_clock: int = 14001
    reasons: int = 0
    processes: list[tuple[int, int | None]] = field(default_factory=list)  # pid, bytes
    gpm_supported: bool = True
    activity: dict[int, float] = field(default_factory=lambda: dict(ACTIVITY))  # GPM metric -> percent
    activity_fails: dict[int, int] = field(default_factory=dict)  # GPM metric -> NVML error code
    gpu_instance_id: int = 3  # of a MIG instance
    slices: tuple[int, int] = (2, 2)  # of its GPU instance, and of its compute instance in that
    fails: dict[str, int] = field(default_factory=dict)  # function -> NVML error code


def _value(argument: Any) -> Any:
    """The Python value of an input argument, which the binding passes with or without a ctypes wrapper."""
    return getattr(argument, "value", argument)


class FakeNvml:
    """What stands in for `pynvml.nvmlLib`: attributes named nvml* are its functions, others do not exist."""

    def __init__(self) -> None:
        self.gpus: list[FakeGpu] = []
        self.instances: list[FakeGpu] = []
        self.missing: set[str] = set()  # functions that this driver is too old for
        self.fails: dict[str, int] = {}  # function -> NVML error code, whatever the device
        self.process_names: dict[int, str] = {}
        self.driver = "570.86.15"
        self.cuda = 12080
        self.calls: list[str] = []
        self.gpm_buffers: dict[int, tuple[int, FakeGpu] | None] = {}  # address -> reading's number and its device
        self.gpm_readings = 0

    def add(self, gpu: FakeGpu) -> FakeGpu:
        (self.instances if gpu.card else self.gpus).append(gpu)
        return gpu

    def __getattr__(self, name: str) -> Callable[..., int]:
        body = FUNCTIONS.get(name)
        if body is None or name in self.missing:
            raise AttributeError(name)

        def function(*arguments: Any) -> int:
            self.calls.append(name)
            if name in self.fails:
                return self.fails[name]
            if name in DEVICE_FUNCTIONS:
                gpu = self.at(arguments[0])
                return gpu.fails[name] if name in gpu.fails else body(self, gpu, *arguments[1:])
            return body(self, *arguments)

        return function

    def at(self, handle: Any) -> FakeGpu:
        """The device behind a handle that `give` wrote: its address is its number."""
        address = ctypes.cast(handle, ctypes.c_void_p).value
        assert address, "the code under test passed a handle that NVML never gave"
        return [*self.gpus, *self.instances][address - 1]

    def give(self, gpu: FakeGpu, target: Any) -> int:
        number = next(index for index, known in enumerate([*self.gpus, *self.instances]) if known is gpu)
        ctypes.cast(target, ctypes.POINTER(ctypes.c_void_p))[0] = number + 1
        return SUCCESS


def _set(value: Callable[[FakeGpu], int]) -> Callable[..., int]:
    def body(_: FakeNvml, gpu: FakeGpu, target: Any) -> int:
        target._obj.value = value(gpu)
        return SUCCESS

    return body


def _set_both(value: Callable[[FakeGpu], int]) -> Callable[..., int]:
    def body(_: FakeNvml, gpu: FakeGpu, current: Any, pending: Any) -> int:
        current._obj.value = pending._obj.value = value(gpu)
        return SUCCESS

    return body


def _text(value: Callable[[FakeGpu], str]) -> Callable[..., int]:
    def body(_: FakeNvml, gpu: FakeGpu, buffer: Any, size: Any) -> int:
        buffer.value = value(gpu).encode()
        return SUCCESS

    return body


def _utilization(_: FakeNvml, gpu: FakeGpu, target: Any) -> int:
    target._obj.gpu, target._obj.memory = gpu.gpu_utilization, gpu.memory_utilization
    return SUCCESS


def _memory(_: FakeNvml, gpu: FakeGpu, target: Any) -> int:
    target._obj.total, target._obj.used = gpu.memory_total, gpu.memory_used
    target._obj.free = gpu.memory_total - gpu.memory_used
    return SUCCESS


def _temperature(_: FakeNvml, gpu: FakeGpu, sensor: Any, target: Any) -> int:
    assert _value(sensor) == pynvml.NVML_TEMPERATURE_GPU
    target._obj.value = gpu.temperature
    return SUCCESS


def _clock(_: FakeNvml, gpu: FakeGpu, kind: Any, target: Any) -> int:
    clocks = {pynvml.NVML_CLOCK_SM: gpu.sm_clock, pynvml.NVML_CLOCK_MEM: gpu.memory_clock}
    target._obj.value = clocks[_value(kind)]
    return SUCCESS


def _processes(_: FakeNvml, gpu: FakeGpu, count: Any, rows: Any) -> int:
    if not gpu.processes:
        count._obj.value = 0
        return SUCCESS
    if rows is None:
        count._obj.value = len(gpu.processes)
        return pynvml.NVML_ERROR_INSUFFICIENT_SIZE
    count._obj.value = len(gpu.processes)
    for row, (pid, used) in zip(rows, gpu.processes, strict=False):
        row.pid, row.usedGpuMemory = pid, 2**64 - 1 if used is None else used
    return SUCCESS


def _card_of(nvml: FakeNvml, gpu: FakeGpu, target: Any) -> int:
    return nvml.give(gpu.card, target) if gpu.card else pynvml.NVML_ERROR_INVALID_ARGUMENT


def _attributes(_: FakeNvml, gpu: FakeGpu, target: Any) -> int:
    target._obj.gpuInstanceSliceCount, target._obj.computeInstanceSliceCount = gpu.slices
    return SUCCESS


def _gpm_support(_: FakeNvml, gpu: FakeGpu, target: Any) -> int:
    assert target._obj.version == pynvml.NVML_GPM_SUPPORT_VERSION
    target._obj.isSupportedDevice = int(gpm_of(gpu).gpm_supported)
    return SUCCESS


def gpm_of(gpu: FakeGpu) -> FakeGpu:
    """GPM is asked of whole cards only."""
    assert gpu.card is None, "GPM was given the handle of a MIG instance"
    return gpu


def _address(buffer: Any) -> int:
    address = ctypes.cast(buffer, ctypes.c_void_p).value
    assert address, "the code under test passed a buffer that NVML never gave"
    return address


def _gpm_alloc(nvml: FakeNvml, target: Any) -> int:
    address = 4096 + len(nvml.calls)
    nvml.gpm_buffers[address] = None
    ctypes.cast(target, ctypes.POINTER(ctypes.c_void_p))[0] = address
    return SUCCESS


def _gpm_free(nvml: FakeNvml, buffer: Any) -> int:
    del nvml.gpm_buffers[_address(buffer)]  # a second time is a KeyError, as it is a crash in NVML
    return SUCCESS


def _gpm_sample(nvml: FakeNvml, gpu: FakeGpu, buffer: Any) -> int:
    return _gpm_store(nvml, gpm_of(gpu), buffer)


def _gpm_mig_sample(nvml: FakeNvml, gpu: FakeGpu, instance: Any, buffer: Any) -> int:
    for known in nvml.instances:
        if known.card is gpm_of(gpu) and known.gpu_instance_id == _value(instance):
            return _gpm_store(nvml, known, buffer)
    return int(pynvml.NVML_ERROR_INVALID_ARGUMENT)


def _gpm_store(nvml: FakeNvml, source: FakeGpu, buffer: Any) -> int:
    assert _address(buffer) in nvml.gpm_buffers, "read into a buffer that was freed"
    nvml.gpm_readings += 1
    nvml.gpm_buffers[_address(buffer)] = (nvml.gpm_readings, source)
    return SUCCESS


def _gpm_metrics(nvml: FakeNvml, target: Any) -> int:
    request = target._obj
    assert request.version == pynvml.NVML_GPM_METRICS_GET_VERSION
    first, second = (nvml.gpm_buffers[_address(buffer)] for buffer in (request.sample1, request.sample2))
    assert first and second, "a buffer that was never read into"
    assert first[0] + 1 == second[0] and first[1] is second[1], "not two neighbouring readings of one device"
    for metric in request.metrics[: request.numMetrics]:
        metric.nvmlReturn = second[1].activity_fails.get(metric.metricId, SUCCESS)
        metric.value = second[1].activity[metric.metricId]
    return SUCCESS


def _init(nvml: FakeNvml, *_: Any) -> int:
    return SUCCESS


def _count(nvml: FakeNvml, target: Any) -> int:
    target._obj.value = len(nvml.gpus)
    return SUCCESS


def _by_index(nvml: FakeNvml, index: Any, target: Any) -> int:
    return nvml.give(nvml.gpus[_value(index)], target)


def _by_uuid(nvml: FakeNvml, uuid: Any, target: Any) -> int:
    for gpu in [*nvml.gpus, *nvml.instances]:
        if gpu.uuid == _value(uuid).decode():
            return nvml.give(gpu, target)
    return int(pynvml.NVML_ERROR_NOT_FOUND)


def _driver(nvml: FakeNvml, buffer: Any, _: Any) -> int:
    buffer.value = nvml.driver.encode()
    return SUCCESS


def _cuda(nvml: FakeNvml, target: Any) -> int:
    target._obj.value = nvml.cuda
    return SUCCESS


def _process_name(nvml: FakeNvml, pid: Any, buffer: Any, _: Any) -> int:
    if _value(pid) not in nvml.process_names:
        return int(pynvml.NVML_ERROR_NOT_FOUND)
    buffer.value = nvml.process_names[_value(pid)].encode()
    return SUCCESS


DEVICE_FUNCTIONS: dict[str, Callable[..., int]] = {
    "nvmlDeviceGetUUID": _text(lambda gpu: gpu.uuid),
    "nvmlDeviceGetName": _text(lambda gpu: gpu.name),
    "nvmlDeviceGetUtilizationRates": _utilization,
    "nvmlDeviceGetMemoryInfo": _memory,
    "nvmlDeviceGetPowerUsage": _set(lambda gpu: gpu.power_milliwatts),
    "nvmlDeviceGetEnforcedPowerLimit": _set(lambda gpu: gpu.power_limit_milliwatts),
    "nvmlDeviceGetPowerManagementDefaultLimit": _set(lambda gpu: gpu.default_power_limit_milliwatts),
    "nvmlDeviceGetTotalEnergyConsumption": _set(lambda gpu: gpu.energy_millijoules),
    "nvmlDeviceGetTemperature": _temperature,
    "nvmlDeviceGetClockInfo": _clock,
    "nvmlDeviceGetCurrentClocksEventReasons": _set(lambda gpu: gpu.reasons),
    "nvmlDeviceGetCurrentClocksThrottleReasons": _set(lambda gpu: gpu.reasons),
    "nvmlDeviceGetComputeRunningProcesses_v2": _processes,
    "nvmlDeviceGetComputeRunningProcesses_v3": _processes,
    "nvmlDeviceGetMigMode": _set_both(lambda gpu: int(gpu.mig)),
    "nvmlDeviceGetEccMode": _set_both(lambda gpu: int(gpu.ecc)),
    "nvmlDeviceGetDeviceHandleFromMigDeviceHandle": _card_of,
    "nvmlDeviceGetAttributes_v2": _attributes,
    "nvmlDeviceGetGpuInstanceId": _set(lambda gpu: gpu.gpu_instance_id),
    "nvmlGpmQueryDeviceSupport": _gpm_support,
    "nvmlGpmSampleGet": _gpm_sample,
    "nvmlGpmMigSampleGet": _gpm_mig_sample,
}
FUNCTIONS: dict[str, Callable[..., int]] = {
    **DEVICE_FUNCTIONS,
    "nvmlInitWithFlags": _init,
    "nvmlShutdown": _init,
    "nvmlSystemGetDriverVersion": _driver,
    "nvmlSystemGetCudaDriverVersion_v2": _cuda,
    "nvmlSystemGetProcessName": _process_name,
    "nvmlDeviceGetCount_v2": _count,
    "nvmlDeviceGetHandleByIndex_v2": _by_index,
    "nvmlDeviceGetHandleByUUID": _by_uuid,
    "nvmlGpmSampleAlloc": _gpm_alloc,
    "nvmlGpmSampleFree": _gpm_free,
    "nvmlGpmMetricsGet": _gpm_metrics,
}


@pytest.fixture
def fake_nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    """An NVML without cards in the place of the machine's own; `add` gives it some."""
    nvml = FakeNvml()
    monkeypatch.setattr(pynvml, "nvmlLib", nvml)
    # pynvml keeps every function it has found, and would go on calling an earlier test's.
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setattr(nvml_call, "_CALLER", nvml_call.Caller())  # which keeps what did not answer
    yield nvml


@pytest.fixture
def device(gpu: FakeGpu) -> NvmlDevice:
    """gpubench's own view of the card in the test's fixture `gpu`."""
    nvml = Nvml.open()
    assert isinstance(nvml, Nvml)
    found = nvml.device(gpu.uuid)
    assert isinstance(found, NvmlDevice)
    return found
