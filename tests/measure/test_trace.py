"""A profiled step: planted events for what only a GPU records, a real one for the rest."""

from __future__ import annotations

import pytest
import torch

from gpubench.measure.trace import Kernel, busy_seconds, from_events, trace_step


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
