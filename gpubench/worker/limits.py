"""Memory limits of the measured process, and how to recognize that memory ran out."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from gpubench.hardware.cpu import read_sizes

if TYPE_CHECKING:
    import torch


def limit_memory(device: torch.device, limit_bytes: int) -> None:
    """Limits this process's memory: on a CPU its data segment, on CUDA the share of the device torch may use."""
    if device.type == "cuda":
        import torch

        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit_bytes / total), device)
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
        if isinstance(seen, MemoryError | torch.OutOfMemoryError):
            return True
        if re.search(r"can't allocate memory|out of memory|bad_alloc|Cannot allocate memory", str(seen), re.IGNORECASE):
            return True
        if "could not create a primitive" in str(seen):  # oneDNN's only message when it gets no memory
            import resource

            return resource.getrlimit(resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY
        seen = seen.__cause__ or seen.__context__
    return False
