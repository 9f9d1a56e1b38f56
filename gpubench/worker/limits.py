"""Memory limits of the measured process, so that a greedy configuration fails alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def limit_memory(device: torch.device, limit_bytes: int) -> None:
    """Caps what this process may allocate: CPU, its data segment; CUDA, the share of the device torch may take."""
    if device.type == "cuda":
        import torch

        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit_bytes / total), device)
        return
    import resource

    # Since Linux 4.7 the data limit counts private writable mappings too, and so malloc's mmap (setrlimit(2)).
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    limit = limit_bytes if hard == resource.RLIM_INFINITY else min(limit_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
