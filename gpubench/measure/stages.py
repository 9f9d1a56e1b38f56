"""Time and memory of a model's named parts in one step, part by part."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from unittest import mock

from gpubench.measure.memory import device_peaks, host_memory, reset_device_peak, reset_host_peak
from gpubench.report.model import StageUse
from gpubench.workloads.building import plain_name

if TYPE_CHECKING:
    import torch
    from torch import nn


def stage_use(
    model: nn.Module, stages: Sequence[str], step: Callable[[], object], device: torch.device
) -> list[StageUse]:
    """What each stage takes of one `step`: a call of it as a module, compiled or not. Others' calls are not seen.

    The device is waited for before and after each call, so that the sum may exceed an undisturbed step.
    """
    import torch
    from torch import nn

    modules = {plain_name(name): module for name, module in model.named_modules(remove_duplicate=False)}
    names = {id(modules[name]): name for name in reversed(stages)}
    seconds, calls = dict.fromkeys(stages, 0.0), dict.fromkeys(stages, 0)
    peaks: dict[str, int] = {}
    host_peaks: dict[str, int] = {}
    called = nn.Module.__call__

    def wait() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def timed(module: nn.Module, *arguments: Any, **named: Any) -> Any:
        name = names.get(id(module))
        if name is None:
            return called(module, *arguments, **named)
        reset_device_peak(device)
        resets = not reset_host_peak()
        started = wait()
        try:
            return called(module, *arguments, **named)
        finally:
            seconds[name] += wait() - started
            calls[name] += 1
            allocated, _ = device_peaks(device)
            host = host_memory().peak if resets else None
            for found, peak in ((peaks, allocated), (host_peaks, host)):
                if peak is not None:
                    found[name] = max(peak, found.get(name, 0))

    with mock.patch.object(nn.Module, "__call__", timed):
        step()
    return [
        StageUse(
            name=name,
            calls=calls[name],
            seconds=seconds[name] if calls[name] else None,
            peak_memory_allocated_bytes=peaks.get(name),
            host_peak_resident_bytes=host_peaks.get(name),
        )
        for name in stages
    ]
