"""One profiled step, as a list of operators with the dtypes and strides they really saw."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Operator:
    """One call of an ATen (or oneDNN) operator. The lists run over its arguments; a non-tensor has empty strides."""

    name: str  # "aten::convolution", "mkldnn::_convolution_pointwise"
    dtypes: tuple[str, ...]  # "float", "c10::BFloat16", "c10::Half", "Scalar", ...
    shapes: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Trace:
    """What ran in one step: CPU-side operators (also those that compiled code calls) and GPU kernel names."""

    operators: tuple[Operator, ...]
    kernels: tuple[str, ...]
    names: frozenset[str]  # of every event, operators and annotations alike

    def named(self, *parts: str) -> list[Operator]:
        """The operators whose name contains any of `parts`."""
        return [operator for operator in self.operators if any(part in operator.name for part in parts)]


def _nest(values: Any) -> tuple[tuple[int, ...], ...]:
    # A TensorList argument has a list of lists here; its members are of no use to any evidence.
    return tuple(
        tuple(value) if isinstance(value, list) and all(isinstance(item, int) for item in value) else ()
        for value in values or ()
    )


def trace_step(step: Callable[[], object], *, cuda: bool) -> Trace:
    """The `Trace` of one call of `step`.

    Read from torch.profiler's own trace file, because strides and dtypes of arguments are in no public attribute.
    Raises RuntimeError where the profiler cannot run (CUPTI missing, say).
    """
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    with profile(activities=activities, record_shapes=True) as profiler:
        step()
    with tempfile.TemporaryDirectory(prefix="gpubench-trace-") as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    operators = tuple(
        Operator(
            name=event["name"],
            dtypes=tuple(event["args"]["Input type"]),
            shapes=_nest(event["args"].get("Input Dims")),
            strides=_nest(event["args"].get("Input Strides")),
        )
        for event in events
        if "Input type" in event.get("args", {})
    )
    return Trace(
        operators=operators,
        kernels=tuple(event["name"] for event in events if event.get("cat") == "kernel"),
        names=frozenset(event["name"] for event in events if "name" in event),
    )
