"""A profiled step: planted events for what only a GPU records, a real one for the rest."""

from __future__ import annotations

import pytest
import torch

from gpubench.measure.trace import STEP, WARM_STEPS, Kernel, busy_seconds, from_events, trace_step


def span(start: float, duration: float, category: str = "kernel", **more) -> dict:
    """An event of a chrome trace; start and duration in microseconds."""
    return {"ph": "X", "cat": category, "name": "k", "ts": start, "dur": duration, "args": {}, **more}


@pytest.mark.parametrize(
    ("events", "microseconds"),
    [
        ([span(10, 5)], 5),
        ([span(10, 5), span(20, 5)], 10),  # a gap
        ([span(10, 5), span(15, 5)], 10),  # back to back
        ([span(10, 5), span(12, 5)], 7),  # two streams overlap
        ([span(10, 20), span(12, 5), span(14, 1)], 20),  # nested
        ([span(10, 20), span(12, 5), span(25, 10)], 25),  # overlapped past one that is nested
        ([span(30, 5), span(10, 5), span(10, 5)], 10),  # out of order, and twice the same
        ([span(10, 5), span(40, 5, "gpu_memcpy"), span(60, 5, "gpu_memset")], 15),
        ([span(10, 5), span(0, 100, "gpu_user_annotation"), span(0, 100, "cpu_op"), span(0, 9, "cuda_runtime")], 5),
        ([span(10.25, 0.5)], 0.5),
        ([span(10, 0)], 0),
        ([{"ph": "s", "cat": "kernel", "ts": 3}, span(10, 5)], 5),  # an event without a duration
    ],
)
def test_the_device_is_busy_while_anything_runs_on_it(events, microseconds):
    assert busy_seconds(events) == pytest.approx(microseconds * 1e-6)


@pytest.mark.parametrize("events", [[], [span(0, 100, "cpu_op")], [{"ph": "M", "name": "process_name"}]])
def test_without_work_on_a_device_it_is_unknown_and_not_zero(events):
    assert busy_seconds(events) is None


def test_events_become_operators_and_kernels():
    events = [
        {"ph": "M", "name": "process_name", "args": {"name": "python"}},
        {
            "ph": "X",
            "name": "aten::mm",
            "cat": "cpu_op",
            "ts": 0,
            "dur": 9,
            "args": {
                "Input type": ["float", "float"],
                "Input Dims": [[2, 3], [[1], [2]]],
                "Input Strides": [[3, 1], []],
            },
        },
        span(3, 2.5, name="ampere_sgemm"),
        span(4, 3, "gpu_memcpy", name="Memcpy HtoD"),
    ]
    trace = from_events(events)
    assert [(each.name, each.dtypes, each.shapes) for each in trace.operators] == [
        ("aten::mm", ("float", "float"), ((2, 3), ()))
    ]
    assert trace.kernels == (Kernel("ampere_sgemm", pytest.approx(2.5e-6)),)
    assert trace.device_busy_s == pytest.approx(4e-6)
    assert trace.names == {"aten::mm", "ampere_sgemm", "Memcpy HtoD"}


def test_a_step_on_a_cpu_shows_its_operators_and_no_device():
    a = torch.ones(3, 4)
    trace = trace_step(lambda: a @ a.T, cuda=False)
    (product,) = (operator for operator in trace.operators if operator.name == "aten::mm")
    assert product.dtypes[:2] == ("float", "float")
    assert product.shapes[:2] == ((3, 4), (4, 3))
    assert product.strides[1] == (1, 4)
    assert trace.kernels == ()
    assert trace.device_busy_s is None


def test_a_step_that_does_nothing_leaves_nothing():
    trace = trace_step(lambda: None, cuda=False)
    assert (trace.operators, trace.kernels, trace.names, trace.device_busy_s) == ((), (), frozenset(), None)


def test_an_error_of_the_step_is_not_swallowed():
    def fail() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        trace_step(fail, cuda=False)


def called(name: str, start: float, duration: float, dtype: str = "float", **more) -> dict:
    """An operator's event."""
    return span(start, duration, "cpu_op", name=name, tid=1, **more) | {"args": {"Input type": [dtype]}}


def test_an_operator_that_is_called_again_inside_itself_is_what_ran() -> None:
    events = [
        called("aten::linear", 0, 50),
        called("aten::addmm", 1, 40),
        called("aten::to", 2, 5),
        called("aten::addmm", 10, 20, "c10::BFloat16"),
        called("aten::copy_", 12, 3),
        called("aten::addmm", 60, 9),
        called("aten::addmm", 10, 20) | {"tid": 2},  # another thread's
    ]
    found = [(each.name, each.dtypes[0], each.depth) for each in from_events(events).operators]
    assert found == [
        ("aten::linear", "float", 0),
        ("aten::to", "float", 1),
        ("aten::addmm", "c10::BFloat16", 1),
        ("aten::copy_", "float", 2),
        ("aten::addmm", "float", 0),
        ("aten::addmm", "float", 0),
    ]


def test_events_of_one_instant_nest_by_length_and_number() -> None:
    def numbered(number: int, duration: float, name: str) -> dict:
        event = called(name, 5, duration)
        event["args"]["External id"] = number
        return event

    events = [numbered(3, 7, "inner"), numbered(2, 7, "outer"), numbered(1, 9, "outermost")]
    assert [(each.name, each.depth) for each in from_events(events).operators] == [
        ("outermost", 0),
        ("outer", 1),
        ("inner", 2),
    ]


def launch(start: float, number: int, name: str = "cudaLaunchKernel") -> dict:
    return span(start, 1, "cuda_runtime", name=name) | {"args": {"correlation": number}}


def ran(start: float, number: int, category: str = "kernel", name: str = "k") -> dict:
    return span(start, 2, category, name=name) | {"args": {"correlation": number}}


def test_the_last_marked_step_is_read_and_what_it_launched() -> None:
    mark = {"cat": "user_annotation", "name": STEP}
    events = [
        span(0, 10, **mark),
        launch(1, 1),
        called("aten::mm", 1, 5),
        ran(99, 1),  # of the first step, by a clock that is ahead
        span(20, 10, **mark),
        called("aten::bmm", 21, 5),
        launch(22, 2),
        launch(23, 3, "cudaMemcpyAsync"),
        launch(24, 9, "cudaStreamSynchronize"),
        ran(5, 2, name="mine"),  # and by one that is behind
        ran(6, 3, "gpu_memcpy", "Memcpy HtoD (Pageable -> Device)"),
        launch(40, 4, "cudaDeviceSynchronize"),  # of the profiler's user, after the step
    ]
    trace = from_events(events)
    assert [each.name for each in trace.operators] == ["aten::bmm"]
    assert [each.name for each in trace.kernels] == ["mine"]
    assert trace.copies == ("Memcpy HtoD (Pageable -> Device)",)
    assert trace.cuda_calls == ("cudaLaunchKernel", "cudaMemcpyAsync", "cudaStreamSynchronize")
    assert STEP not in trace.names and "aten::mm" not in trace.names
    assert (trace.lost, trace.device_busy_s) == (0, pytest.approx(3e-6))


@pytest.mark.parametrize("name", ["cudaLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch"])
def test_busy_time_is_unknown_where_launches_left_no_kernel(name: str) -> None:
    trace = from_events([launch(1, 1), ran(2, 1), launch(3, 2, name)])
    assert (trace.lost, trace.device_busy_s) == (1, None)


@pytest.mark.parametrize(("cuda", "steps"), [(False, 1), (True, WARM_STEPS + 1)])
def test_one_step_is_read_whatever_ran_before_it(monkeypatch: pytest.MonkeyPatch, cuda: bool, steps: int) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        torch.ones(8, count)

    trace = trace_step(step, cuda=cuda)
    assert count == steps
    assert [each.name for each in trace.operators].count("aten::ones") == 1
    assert trace.allocated_bytes == 8 * steps * 4  # of the last one


def test_what_runs_before_it_on_a_gpu_can_be_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    ran: list[str] = []
    trace_step(lambda: ran.append("step"), cuda=True, before=lambda: ran.append("before"))
    assert ran == ["before"] * WARM_STEPS + ["step"]
    ran.clear()
    trace_step(lambda: ran.append("step"), cuda=False, before=lambda: ran.append("before"))
    assert ran == ["step"]


def test_what_was_given_back_was_allocated_too() -> None:
    def step() -> None:
        for _ in range(3):
            torch.empty(100)

    assert trace_step(step, cuda=False).allocated_bytes == 3 * 400
