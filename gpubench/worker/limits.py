"""Memory limits of the measured process, and how to recognize that memory ran out."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from gpubench.hardware.cpu import read_sizes
from gpubench.text import message_of
from gpubench.units import format_bytes

if TYPE_CHECKING:
    import torch

# What torch and the libraries below it say when they get no memory: cuBLAS, cuDNN, cuFFT, cuSOLVER and cuSPARSE in
# names such as CUBLAS_STATUS_ALLOC_FAILED, cuDNN 9 also in CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED.
_OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|out[ _]of[ _]memory|bad_alloc|cannot allocate memory|not enough memory"
    r"|\b(CU|HIP|ROC)[A-Z]+_(STATUS_)?(\w+_)?ALLOC(ATION)?_FAILED",
    re.IGNORECASE,
)
# What else they say where the device is nearly full, and in other cases too: no algorithm got its workspace
# (pytorch#108645), or a library's handle could not be made.
_WHERE_FULL = re.compile(
    r"unable to find an engine|no valid (execution plan|cudnn engine)"
    r"|CU(BLAS|DNN|SOLVER|SPARSE)_STATUS_(NOT_INITIALIZED|INTERNAL_ERROR)",
    re.IGNORECASE,
)
NEARLY_FULL = 0.1  # of what the process may have: workspaces reach some hundred MiB


def limit_memory(device: torch.device, limit_bytes: int, beyond_torch_bytes: int = 0) -> None:
    """Limits this process's memory: on a CPU its data segment, on CUDA what torch's allocator may have.

    beyond_torch_bytes: what the process holds of the device outside torch's allocator, which a card of `limit_bytes`
    would have to hold as well. The limit can be set anew when that has grown.
    """
    if device.type == "cuda":
        import torch

        if limit_bytes <= beyond_torch_bytes:
            raise MemoryError(
                f"the limit of {format_bytes(limit_bytes)} is below the {format_bytes(beyond_torch_bytes)} "
                "that the CUDA context and libraries take"
            )
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, (limit_bytes - beyond_torch_bytes) / total), device)
        return
    import resource

    # Since Linux 4.7 the data limit counts private writable mappings too, and so malloc's mmap (setrlimit(2)).
    with contextlib.suppress(OSError):
        used = read_sizes(Path("/proc/self/status")).get("VmData", 0)
        if limit_bytes <= used:
            raise MemoryError(f"the limit of {limit_bytes} bytes is below the {used} that Python and torch already use")
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    limit = limit_bytes if hard == resource.RLIM_INFINITY else min(limit_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` or its cause says that memory ran out, on the device or on the host."""
    import torch

    seen: BaseException | None = error
    while seen is not None:
        text = message_of(seen)
        if isinstance(seen, MemoryError | torch.OutOfMemoryError) or _OUT_OF_MEMORY.search(text):
            return True
        if _WHERE_FULL.search(text) and _device_is_nearly_full():
            return True
        if "could not create a primitive" in text:  # oneDNN's only message when it gets no memory
            import resource

            return resource.getrlimit(resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY
        seen = seen.__cause__ or seen.__context__
    return False


def _device_is_nearly_full() -> bool:
    """Whether torch's current GPU has little memory left for this process, of the card or of the process's limit.

    Asked while the error is handled, whose frames still hold what the step had allocated.
    """
    import torch

    if not torch.cuda.is_initialized():
        return False
    free, total = torch.cuda.mem_get_info()
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    # Torch tells its share of the card since 2.7.
    allowed = getattr(torch.cuda, "get_per_process_memory_fraction", lambda: 1.0)() * total
    # What torch has reserved and not allocated it gives back before it fails.
    return min(free + reserved - allocated, allowed - allocated) < NEARLY_FULL * min(allowed, total)
