"""One profiled step, as a list of operators with the dtypes and strides they really saw, and of GPU kernels."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What the profiler calls work on a GPU. Its other categories there are annotations, which span idle time as well.
_ON_DEVICE = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
_MICROSECOND = 1e-6  # chrome traces give start and duration in microseconds, with fractions


@dataclass(frozen=True)
class Operator:
    """One call of an ATen (or oneDNN) operator. The lists run over its arguments; a non-tensor has empty strides."""

    name: str  # "aten::convolution", "mkldnn::_convolution_pointwise"
    dtypes: tuple[str, ...]  # "float", "c10::BFloat16", "c10::Half", "Scalar", ...
    shapes: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Kernel:
    """One run of a GPU kernel."""

    name: str  # as the library calls it, C++ template arguments included
    seconds: float


@dataclass(frozen=True)
class Trace:
    """What ran in one step: CPU-side operators (also those that compiled code calls) and GPU kernels."""

    operators: tuple[Operator, ...]
    kernels: tuple[Kernel, ...]
    names: frozenset[str]  # of all that ran: operators, kernels, calls of CUDA, annotations
    device_busy_s: float | None = None  # see `busy_seconds`


def busy_seconds(events: Iterable[Mapping[str, Any]]) -> float | None:
    """Seconds in which at least one GPU kernel, copy or fill ran; None where the chrome-trace `events` hold none.

    The length of the union of their intervals: streams overlap, so that a sum could exceed the step itself.
    """
    spans = sorted(
        (float(event["ts"]), float(event["ts"]) + float(event["dur"]))
        for event in events
        if event.get("cat") in _ON_DEVICE and "dur" in event
    )
    if not spans:
        return None
    busy, reached = 0.0, spans[0][0]
    for start, end in spans:
        if end > reached:
            busy += end - max(start, reached)
            reached = end
    return busy * _MICROSECOND


def _nest(values: Any) -> tuple[tuple[int, ...], ...]:
    # A TensorList argument has a list of lists here; its members are of no use to any evidence.
    return tuple(
        tuple(value) if isinstance(value, list) and all(isinstance(item, int) for item in value) else ()
        for value in values or ()
    )


def from_events(events: list[dict[str, Any]]) -> Trace:
    """The `Trace` of the events of a chrome trace, as torch.profiler writes them."""
    return Trace(
        operators=tuple(
            Operator(
                name=event["name"],
                dtypes=tuple(event["args"]["Input type"]),
                shapes=_nest(event["args"].get("Input Dims")),
                strides=_nest(event["args"].get("Input Strides")),
            )
            for event in events
            if "Input type" in event.get("args", {})
        ),
        kernels=tuple(
            Kernel(name=event["name"], seconds=float(event.get("dur", 0)) * _MICROSECOND)
            for event in events
            if event.get("cat") == "kernel"
        ),
        # Only events that last, without the profiler's own: its notes on processes are there even where nothing ran.
        names=frozenset(event["name"] for event in events if event.get("ph") == "X" and event.get("cat") != "Trace"),
        device_busy_s=busy_seconds(events),
    )


def trace_step(step: Callable[[], object], *, cuda: bool) -> Trace:
    """The `Trace` of one call of `step`.

    Read from torch.profiler's own trace file, because strides and dtypes of arguments are in no public attribute.
    Raises RuntimeError where the profiler cannot run (CUPTI missing, say).
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    if cuda:  # else kernels that earlier steps have launched would be counted to this one
        torch.cuda.synchronize()
    with profile(activities=activities, record_shapes=True) as profiler:
        step()
        if cuda:
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory(prefix="gpubench-trace-") as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        return from_events(json.loads(path.read_text())["traceEvents"])
