"""How the fp32 reference is made on a device whose memory the plain model does not fit into."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpubench.worker import limits

if TYPE_CHECKING:
    import torch

    from gpubench.workloads.workload_facts import Mode


@dataclass(frozen=True)
class Way:
    """One way to run the plain model: `where` ends the sentence that says what outputs were compared with."""

    where: str
    device: torch.device
    enter: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext  # entered around all steps


def ways(device: torch.device, mode: Mode) -> list[Way]:
    """The ways to make a reference for `device`, the preferred one first; the later ones take less of its memory."""
    import torch

    plain = Way("on the same device", device)
    if device.type == "cpu":
        return [plain]
    # The same kernels on the same numbers: what the backward pass needs just waits elsewhere. In inference nothing is
    # kept for it.
    offloaded = Way(
        "on the same device, with activations kept in the host's memory", device, torch.autograd.graph.save_on_cpu
    )
    return [plain, *([offloaded] if mode == "training" else []), Way("on the CPU", torch.device("cpu"))]


def first_that_fits(choices: Sequence[Way], make: Callable[[Way], None]) -> Way:
    """Calls `make` with each way until one does not run out of memory, and returns that one."""
    for way in choices:
        try:
            with way.enter():
                make(way)
            return way
        except (RuntimeError, MemoryError) as error:
            if way is choices[-1] or not limits.is_out_of_memory(error):
                raise
        _give_back(way.device)  # here, where the error and all that its frames held are gone
    raise ValueError("there is no way to make a reference")


def _give_back(device: torch.device) -> None:
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
