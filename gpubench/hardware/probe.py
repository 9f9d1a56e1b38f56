"""Device and software as torch sees them. Call these in a worker: they may initialize CUDA.

`python -m gpubench.hardware.probe [DEVICE]` prints them as JSON.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import msgspec
from msgspec import Struct, field

from gpubench.errors import GpubenchError
from gpubench.hardware.cpu import BFLOAT16_SETS, FLOAT16_SETS, read_cpu
from gpubench.hardware.facts import Device, Environment
from gpubench.hardware.find_device import find_device
from gpubench.hardware.monitored import Gatherer, GpuState
from gpubench.hardware.nvml import Nvml, NvmlDevice, Unavailable
from gpubench.hardware.nvml_call import where_known
from gpubench.text import encodable

# Environment variables that change what torch does or how fast, as patterns.
VARIABLES = (
    *("GLIBC_TUNABLES", "MALLOC_*", "MIMALLOC_*", "TCMALLOC_*", "LD_PRELOAD", "MKL_*", "OMP_*", "KMP_*", "GOMP_*"),
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_LAUNCH_BLOCKING", "CUDA_MODULE_LOADING", "CUDNN_*"),
    *("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_NO_CUDA_MEMORY_CACHING", "NVIDIA_TF32_OVERRIDE"),
    *("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TORCH_CUDNN_*", "CUBLAS_*", "CUBLASLT_*", "TORCHINDUCTOR_*"),
    *("TORCHDYNAMO_*", "TORCH_COMPILE_*", "TRITON_*", "DNNL_*", "ONEDNN_*", "ATEN_CPU_CAPABILITY", "CXX"),
    "JE_MALLOC_CONF",
)


class DeviceProbe(Struct, frozen=True, kw_only=True):
    """What `python -m gpubench.hardware.probe` prints."""

    device: Device
    environment: Environment
    present: list[str]  # devices that torch can use: "cpu", "cuda:0", ...
    architectures: list[str] = field(default_factory=list)  # GPU code inside this torch: "sm_90", "compute_90"
    cuda_problem: str = ""  # of `cuda_problem`


def present_devices() -> list[str]:
    """The devices that torch can use: the CPU, then each GPU."""
    import torch

    # Asked through NVML, torch says "available" also where the driver is too old for it.
    usable = torch.cuda.is_available() and not cuda_problem()
    return ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count() if usable else 0))]


def choose_device(device: str = "auto") -> str:
    """`cpu` or `cuda:N` for what the user asked for; `auto` is the best GPU where CUDA works, else cpu.

    Raises GpubenchError for a device that is not there, naming those that are.
    """
    present = present_devices()
    wanted = {"auto": best_device(present[1:]), "cuda": "cuda:0"}.get(device, device)
    if wanted in present:
        return wanted
    if not re.fullmatch(r"cpu|cuda:\d+", wanted):
        raise GpubenchError(
            f"Device {device!r} is not understood.", f"Allowed: auto, cpu, cuda:N. Here: {', '.join(present)}."
        )
    why = "" if len(present) > 1 else f" {cuda_problem()}"
    raise GpubenchError(f"Device {device!r} is not there.{why}", f"This machine has: {', '.join(present)}.")


def best_device(gpus: list[str]) -> str:
    """Of `gpus` the one with most multiprocessors that nobody uses, or with most where all are in use; else `cpu`."""
    import torch

    def multiprocessors(gpu: str) -> int:
        return int(torch.cuda.get_device_properties(gpu).multi_processor_count)

    if len(gpus) < 2:
        return gpus[0] if gpus else "cpu"
    ordered = sorted(gpus, key=multiprocessors, reverse=True)
    return next((gpu for gpu in ordered if _is_free(int(gpu.removeprefix("cuda:")))), ordered[0])


def _is_free(index: int) -> bool:
    """Whether nobody is seen to use that GPU."""
    import torch

    from gpubench.measure.device_free import busy_before

    access = find_device("cuda", _uuid(torch.cuda.get_device_properties(index)), index, os.environ)
    busy = busy_before(access.device, 0.0, ours=frozenset({os.getpid()}))
    access.close()
    return isinstance(busy, Unavailable) or not busy


def _uuid(properties: Any) -> str | None:
    """What torch gives as a device's UUID; older versions give none, and for Jetson boards it is zeros."""
    uuid = str(getattr(properties, "uuid", ""))
    return uuid if uuid.strip("0-") else None


def cuda_problem() -> str:
    """Why CUDA does not start in this process, with the remedy where one is known; "" where it starts."""
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is built without CUDA."
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        found = re.search(r"driver on your system is too old \(found version (\d+)\)", str(error))
        if found is None:
            return f"CUDA does not start: {(str(error).splitlines() or [type(error).__name__])[0]}"
        major, minor = divmod(int(found[1]) // 10, 100)
        return (
            f"The NVIDIA driver is too old for this torch: it runs CUDA {major}.{minor} at most, and torch "
            f"{torch.__version__} is built for CUDA {torch.version.cuda}. Update the driver, or install torch for CUDA "
            f"{major}."
        )
    return "" if torch.cuda.device_count() else "CUDA starts but offers no device."


def probe_device(device: str) -> Device:
    """The facts of `cpu` or `cuda:N`. Raises GpubenchError for a device that is not there."""
    chosen = choose_device(device)
    return _probe_cpu() if chosen == "cpu" else _probe_cuda(int(chosen.partition(":")[2]))


def _probe_cpu() -> Device:
    import torch

    cpu = read_cpu()
    sets = frozenset(cpu.instruction_sets)
    fast = ["float32"]
    # oneDNN says "supported" also where it converts to float32 and back, so the instructions must be there too.
    if torch.ops.mkldnn._is_mkldnn_bf16_supported() and sets & BFLOAT16_SETS:
        fast.append("bfloat16")
    if torch.ops.mkldnn._is_mkldnn_fp16_supported() and sets & FLOAT16_SETS:
        fast.append("float16")
    return Device(
        kind="cpu",
        name=cpu.name,
        total_memory_bytes=cpu.total_memory_bytes,
        fast_dtypes=fast,
        cores=cpu.cores,
        physical_cores=cpu.physical_cores,
        instruction_sets=cpu.instruction_sets,
        l2_cache_bytes=cpu.last_level_cache_bytes,
        unavailable={
            ("l2_cache_bytes" if name == "last_level_cache_bytes" else name): reason
            for name, reason in cpu.unavailable.items()
            if name in ("name", "physical_cores", "total_memory_bytes", "instruction_sets", "last_level_cache_bytes")
        },
    )


def fast_cuda_dtypes(capability: tuple[int, int]) -> list[str]:
    """Types that a GPU of this compute capability computes in hardware (CUDA programming guide, arithmetic throughput).

    float16 runs from 5.3 on, but faster than float32 only from 7.0 (tensor cores).
    """
    since = {"float32": (0, 0), "tf32": (8, 0), "float16": (7, 0), "bfloat16": (8, 0)}
    return [name for name, first in since.items() if capability >= first]


def _probe_cuda(index: int) -> Device:
    import torch

    properties: Any = torch.cuda.get_device_properties(index)
    got = Gatherer()
    uuid = _uuid(properties)
    got.put("uuid", uuid or Unavailable("neither torch nor NVML gives one"))
    nvml = Nvml.open()
    got.put("driver_version", where_known(Nvml.driver_version, nvml))
    card = where_known(lambda nvml: nvml.find(uuid, index), nvml)
    state = where_known(NvmlDevice.state, card)
    for name in ("power_limit_watts", "mig", "ecc"):
        got.put(name, where_known(GpuState.reading, state, name))
    if isinstance(card, NvmlDevice) and card.uuid:
        got.values["uuid"] = card.uuid
        got.unavailable.pop("uuid", None)
    if isinstance(nvml, Nvml):
        nvml.close()
    return Device(
        kind="cuda",
        name=properties.name,
        index=index,
        total_memory_bytes=properties.total_memory,
        fast_dtypes=fast_cuda_dtypes((properties.major, properties.minor)),
        compute_capability=[properties.major, properties.minor],
        multiprocessors=properties.multi_processor_count,
        l2_cache_bytes=getattr(properties, "L2_cache_size", None),
        **got.values,
        unavailable=got.unavailable,
    )


def probe_environment() -> Environment:
    """The software under a measurement, and the environment variables that steer it."""
    import torch

    backend: Any = torch.backends.cudnn
    cudnn = backend.version() if backend.is_available() else None
    libc = " ".join(part for part in platform.libc_ver() if part)
    return Environment(
        platform=platform.platform(),
        python=platform.python_version(),
        torch=str(torch.__version__),  # a class of its own otherwise, which JSON does not know
        cuda=torch.version.cuda,
        cudnn=None if cudnn is None else _cudnn_name(cudnn),
        triton=_triton_version(),
        compiler=_compiler(),
        libc=libc or None,
        variables=steering_variables(os.environ),
    )


def _cudnn_name(version: int) -> str:
    # 90100 is 9.1.0; before cuDNN 9 it was 8902 for 8.9.2.
    major, unit = divmod(version, 10000 if version >= 90000 else 1000)
    return f"{major}.{unit // 100}.{unit % 100}"


def _triton_version() -> str | None:
    import importlib.metadata

    for distribution in ("triton", "pytorch-triton", "triton-windows"):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _compiler() -> str | None:
    """The C++ compiler that inductor calls (CXX, else g++ or clang++), with its version's first line."""
    command = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    try:
        done = subprocess.run(
            [command, "--version"], capture_output=True, text=True, errors="replace", timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines()[0] if done.stdout else command


def steering_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Those of `environment` that change what torch does, sorted by name."""
    return {
        name: encodable(environment[name])
        for name in sorted(environment)
        if any(fnmatchcase(name, each) for each in VARIABLES)
    }


def main(arguments: list[str]) -> None:
    """Prints the `DeviceProbe` of one device as JSON."""
    import torch

    chosen = choose_device(arguments[0] if arguments else "auto")
    architectures = torch.cuda.get_arch_list() if chosen != "cpu" else []
    probe = DeviceProbe(
        device=probe_device(chosen),
        environment=probe_environment(),
        present=present_devices(),
        architectures=architectures,
        cuda_problem=cuda_problem() if torch.cuda.is_available() else "",
    )
    sys.stdout.write(msgspec.json.encode(probe).decode() + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
