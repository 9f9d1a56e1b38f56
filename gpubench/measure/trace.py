"""One profiled step, as a list of operators with the dtypes and strides they really saw, and of GPU kernels."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpubench.measure.flops import flops

Event = Mapping[str, Any]  # of a chrome trace, as torch.profiler writes it

STEP = "gpubench.step"  # the annotation around the step that is read
WARM_STEPS = 2  # before it on a GPU: CUPTI drops kernels at the head of a session, the more the longer the GPU idled

# What the profiler calls work on a GPU. Its other categories there are annotations, which span idle time as well.
_ON_DEVICE = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
_CALLS = frozenset({"cuda_runtime", "cuda_driver"})  # of the host
_MICROSECOND = 1e-6  # chrome traces give start and duration in microseconds, with fractions


@dataclass(frozen=True)
class Operator:
    """One call of an ATen (or oneDNN) operator. The lists run over its arguments; a non-tensor has empty strides."""

    name: str  # "aten::convolution", "mkldnn::_convolution_pointwise"
    dtypes: tuple[str, ...]  # "float", "c10::BFloat16", "c10::Half", "Scalar", ...
    shapes: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]
    depth: int = 0  # how many operators had called it; those that it called itself follow it, deeper
    flops: int | None = None  # None: not counted, see `flops.py`


@dataclass(frozen=True)
class Kernel:
    """One run of a GPU kernel."""

    name: str  # as the library calls it, C++ template arguments included
    seconds: float


@dataclass(frozen=True)
class Trace:
    """What ran in one step: CPU-side operators (also those that compiled code calls) and GPU kernels."""

    operators: tuple[Operator, ...]  # thread by thread, in the order in which they began
    kernels: tuple[Kernel, ...]
    names: frozenset[str]  # of all that ran: operators, kernels, calls of CUDA, annotations
    device_busy_s: float | None = None  # see `busy_seconds`; None too where kernels were lost
    cuda_calls: tuple[str, ...] = ()  # of the host: "cudaLaunchKernel"
    copies: tuple[str, ...] = ()  # on or to the GPU: "Memcpy HtoD (Pageable -> Device)"
    copy_streams: tuple[int | None, ...] = ()  # the stream of each of `copies`, where it was recorded
    kernel_streams: frozenset[int | None] = frozenset()  # those that `kernels` ran on
    lost: int = 0  # launches of which the profiler recorded no kernel
    allocated_bytes: int | None = None  # all that was allocated in the step on its device, one after another


def busy_seconds(events: Iterable[Event]) -> float | None:
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


def from_events(events: Sequence[Event]) -> Trace:
    """The `Trace` of the events of a chrome trace, as torch.profiler writes them."""
    events = _of_the_step(events)
    ran = [event for event in events if event.get("cat") in _ON_DEVICE]
    calls = [event for event in events if event.get("cat") in _CALLS]
    copies = [event for event in ran if event["cat"] == "gpu_memcpy"]
    lost = _lost(calls, ran)
    return Trace(
        operators=tuple(_operators(events)),
        kernels=tuple(
            Kernel(name=event["name"], seconds=float(event.get("dur", 0)) * _MICROSECOND)
            for event in ran
            if event["cat"] == "kernel"
        ),
        # Only events that last, without the profiler's own: its notes on processes are there even where nothing ran.
        names=frozenset(
            event["name"]
            for event in events
            if event.get("ph") == "X" and event.get("cat") != "Trace" and event["name"] != STEP
        ),
        device_busy_s=None if lost else busy_seconds(ran),
        cuda_calls=tuple(event["name"] for event in calls),
        copies=tuple(event["name"] for event in copies),
        copy_streams=tuple(_stream(event) for event in copies),
        kernel_streams=frozenset(_stream(event) for event in ran if event["cat"] == "kernel"),
        lost=lost,
        allocated_bytes=_allocated(events),
    )


def _of_the_step(events: Sequence[Event]) -> Sequence[Event]:
    """The events of the last marked step; all, where none is marked.

    What ran on the GPU is known by the call that launched it: the clocks of host and GPU drift apart.
    """
    marks = [event for event in events if event.get("name") == STEP and event.get("cat") == "user_annotation"]
    if not marks:
        return events
    last = max(marks, key=lambda event: float(event["ts"]))
    start = float(last["ts"])
    end = start + float(last["dur"])

    def began_in_it(event: Event) -> bool:
        return "ts" in event and start <= float(event["ts"]) <= end

    numbers = {_correlation(event) for event in events if event.get("cat") in _CALLS and began_in_it(event)}
    return [event for event in events if (_correlation(event) in numbers if _correlates(event) else began_in_it(event))]


def _correlates(event: Event) -> bool:
    return event.get("cat") in _ON_DEVICE and _correlation(event) is not None


def _correlation(event: Event) -> Any:
    return event.get("args", {}).get("correlation")


def _stream(event: Event) -> int | None:
    stream = event.get("args", {}).get("stream")
    return stream if isinstance(stream, int) else None


def _lost(calls: Sequence[Event], ran: Sequence[Event]) -> int:
    """How many launches left no record of what they launched."""
    launches = [event for event in calls if "Launch" in event["name"] and "HostFunc" not in event["name"]]
    known = {_correlation(event) for event in ran}
    return sum(_correlation(event) is not None and _correlation(event) not in known for event in launches)


def _allocated(events: Sequence[Event]) -> int | None:
    """Bytes of all allocations, those given back meanwhile included; of a GPU's memory where it was used."""
    found = [event["args"] for event in events if event.get("name") == "[memory]"]
    if not found:
        return None
    kind = max(each["Device Type"] for each in found)  # torch numbers the kinds of device: 0 is the CPU, 1 is CUDA
    return sum(max(0, int(each["Bytes"])) for each in found if each["Device Type"] == kind)


@dataclass
class _Call:
    """An operator's event with the one that it was called from."""

    event: Event
    caller: _Call | None
    repeated: bool = False  # it called itself once more, which does the work

    @property
    def depth(self) -> int:
        depth, caller = 0, self.caller
        while caller is not None:
            depth, caller = depth + (not caller.repeated), caller.caller
        return depth


def _operators(events: Sequence[Event]) -> list[Operator]:
    """The operators thread by thread, in the order in which they began.

    Autocast, functorch and tensor subclasses intercept an operator, change its arguments, and call it again: it is
    recorded twice, one inside the other. Only the inner one is what ran.
    """
    threads: dict[Any, list[Event]] = {}
    for event in events:
        if "Input type" in event.get("args", {}):
            threads.setdefault((event.get("pid"), event.get("tid")), []).append(event)
    return [_operator(call) for thread in threads.values() for call in _calls(thread) if not call.repeated]


def _calls(events: Sequence[Event]) -> list[_Call]:
    """The events of one thread, each with its caller: the innermost one that had begun and not ended."""
    calls: list[_Call] = []
    open_calls: list[tuple[float, _Call]] = []
    for event in sorted(events, key=_start):
        start = float(event.get("ts", 0))
        while open_calls and open_calls[-1][0] <= start:
            open_calls.pop()
        call = _Call(event, open_calls[-1][1] if open_calls else None)
        for _, outer in open_calls:
            outer.repeated = outer.repeated or outer.event["name"] == event["name"]
        open_calls.append((start + float(event.get("dur", 0)), call))
        calls.append(call)
    return calls


def _start(event: Event) -> tuple[float, float, int]:
    # Of two that begin at once the longer one is outside, and of two that are equal the one with the lower number.
    number = event.get("args", {}).get("External id", 0)
    return float(event.get("ts", 0)), -float(event.get("dur", 0)), number if isinstance(number, int) else 0


def _operator(call: _Call) -> Operator:
    name, arguments = call.event["name"], call.event["args"]
    shapes = arguments.get("Input Dims") or ()
    return Operator(
        name=name,
        dtypes=tuple(arguments["Input type"]),
        shapes=_nest(shapes),
        strides=_nest(arguments.get("Input Strides")),
        depth=call.depth,
        flops=flops(name, shapes, arguments.get("Concrete Inputs") or ()),
    )


def _nest(values: Any) -> tuple[tuple[int, ...], ...]:
    # A TensorList argument has a list of lists here; its members are of no use to any evidence.
    return tuple(
        tuple(value) if isinstance(value, list) and all(isinstance(item, int) for item in value) else ()
        for value in values or ()
    )


def trace_step(step: Callable[[], object], *, cuda: bool, before: Callable[[], object] | None = None) -> Trace:
    """The `Trace` of one call of `step`; on a GPU after some of `before`, by default of itself.

    Read from torch.profiler's own trace file, because strides and dtypes of arguments are in no public attribute.
    Raises RuntimeError where the profiler cannot run (CUPTI missing, say).
    """
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    if cuda:  # else kernels that earlier steps have launched would be counted to this one
        torch.cuda.synchronize()
    with profile(activities=activities, record_shapes=True, profile_memory=True) as profiler:
        for each in (*[before or step] * (WARM_STEPS if cuda else 0), step):
            with record_function(STEP):
                each()
            if cuda:
                torch.cuda.synchronize()
    with tempfile.TemporaryDirectory(prefix="gpubench-trace-") as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        return from_events(json.loads(path.read_text())["traceEvents"])
