"""Copies from pageable and pinned memory, in the step or one ahead; faked below torch's own calls of CUDA."""

from __future__ import annotations

import ast
import dataclasses
from typing import Any
from unittest import mock

import pytest
import torch

from gpubench.measure.trace import Kernel, Operator, Trace, from_events
from gpubench.search.space import Builder
from gpubench.toggles.input import transfer
from gpubench.toggles.input.transfer import TRANSFER
from gpubench.toggles.toggle import in_force
from gpubench.worker.step import Stepper

PAGEABLE, PINNED = "Memcpy HtoD (Pageable -> Device)", "Memcpy HtoD (Pinned -> Device)"


class Streams:
    """Stands for CUDA's streams: notes what is asked of them."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def Stream(self, device: Any) -> Streams:  # noqa: N802 - torch's name
        return self

    def stream(self, _: Any) -> mock.MagicMock:
        return mock.MagicMock()

    def record_event(self) -> str:
        self.asked.append("copied")
        return "event"

    def current_stream(self, _: Any) -> Streams:
        return self

    def wait_event(self, event: str) -> None:
        self.asked.append(f"waited for {event}")


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    fake = Streams()
    for name in ("Stream", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: hasattr(tensor, "pinned"))
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: fake.asked.append("recorded"))
    return fake


def pin(tensor: torch.Tensor) -> torch.Tensor:
    copy = tensor.clone()
    copy.pinned = True  # type: ignore[attr-defined]
    return copy


def context(kit: Any, value: str, count: int = 3, **replace: Any) -> Any:
    """Batches on the host, of which item i is full of i, and the toggle applied."""
    made = kit.prepare({})
    made.inputs_resident = False
    image, label = made.batches[0]
    made.batches = [(torch.full_like(image, float(index)), label) for index in range(count)]
    dataclasses.replace(TRANSFER, **replace).apply(made, value)
    return made


def trace(*copies: tuple[str, int | None], kernels: tuple[int | None, ...] = (7,)) -> Trace:
    return Trace(
        operators=(Operator(name="aten::mm", dtypes=(), shapes=(), strides=()),),
        kernels=(Kernel(name="gemm", seconds=1.0),) * len(kernels),
        names=frozenset({"cudaLaunchKernel"}),
        copies=tuple(name for name, _ in copies),
        copy_streams=tuple(stream for _, stream in copies),
        kernel_streams=frozenset(kernels),
    )


def test_host_batches_are_pinned_and_copied(kit: Any, streams: Streams) -> None:
    made = context(kit, "pinned")
    assert all(tensor.is_pinned() for batch in made.batches for tensor in batch)
    assert [float(made.step.fetch(index)[0].max()) for index in (0, 2, 1)] == [0, 2, 1]
    made.batches.append(tuple(tensor + 9 for tensor in made.batches[0]))  # of a check
    assert float(made.step.fetch(3)[0].max()) == 9


def test_a_loader_is_told_to_pin(kit: Any, streams: Streams) -> None:
    made = kit.prepare({})
    made.fetched_anew = True
    TRANSFER.apply(made, "prefetch")
    assert made.loading == {"pin_memory": True}
    assert not any(tensor.is_pinned() for tensor in made.batches[0])


def test_each_batch_is_copied_a_step_before_and_waited_for(kit: Any, streams: Streams) -> None:
    made = context(kit, "prefetch")
    stepper = Stepper(made)
    stepper.step()
    # The first batch and the second; the first alone is waited for, and its two tensors are recorded.
    assert streams.asked == ["copied", "waited for event", "recorded", "recorded", "copied"]
    found = [float(made.step.fetch(index)[0].max()) for index in (1, 2, 0, 1)]
    assert found == [1, 2, 0, 1]
    assert made.notes["transfer.steps"] == {"ahead": 4, "late": 1}
    assert float(made.step.fetch(0)[0].max()) == 0  # out of turn: right, and late
    assert float(made.step.fetch(0)[0].max()) == 0
    assert made.notes["transfer.steps"] == {"ahead": 4, "late": 3}
    made.batches.append(tuple(tensor + 9 for tensor in made.batches[0]))
    assert float(made.step.fetch(3)[0].max()) == 9


CASES = [
    ("pinned", trace((PINNED, 7), (PINNED, 7)), True),
    ("pinned", trace((PAGEABLE, 7), (PINNED, 7)), False),
    ("pinned", trace((PAGEABLE, 7), (PAGEABLE, 7)), False),
    ("pinned", trace((PAGEABLE, 7), (PINNED, 7), (PINNED, 7)), True),  # the model copies as well
    ("pinned", trace(), False),
    ("pinned", trace(("CopyHostToDevice", 7), ("CopyHostToDevice", 7)), None),
    ("prefetch", trace((PINNED, 13), (PINNED, 13)), True),
    ("prefetch", trace((PINNED, 7), (PINNED, 7)), False),  # on the stream that computes
    ("prefetch", trace((PAGEABLE, 13), (PAGEABLE, 13)), False),
    ("prefetch", trace((PINNED, None), (PINNED, None)), None),
    ("prefetch", trace((PINNED, 13), (PINNED, 13), kernels=()), None),
]


@pytest.mark.parametrize(("value", "seen", "took_effect"), CASES)
def test_the_trace_tells(kit: Any, streams: Streams, value: str, seen: Trace, took_effect: bool | None) -> None:
    made = context(kit, value)
    for index in (0, 1, 2):
        made.step.fetch(index)
    made.device, made.trace = torch.device("cuda"), seen
    assert TRANSFER.evidence(made, value).took_effect is took_effect
    assert TRANSFER.evidence(made, "pageable").took_effect is False
    other = "pinned" if value == "prefetch" else "prefetch"
    assert TRANSFER.evidence(made, other).took_effect is not True


@pytest.mark.parametrize("value", ["pinned", "prefetch"])
def test_nothing_applied_is_caught(kit: Any, value: str) -> None:
    made = context(kit, value, apply=in_force)
    made.device, made.trace = torch.device("cuda"), trace((PINNED, 13), (PINNED, 13))
    assert TRANSFER.evidence(made, value).took_effect is False
    assert TRANSFER.evidence(made, "pageable").took_effect is True  # the model's own copies


def test_without_records_of_cuda_nothing_is_said(kit: Any, streams: Streams) -> None:
    made = context(kit, "pinned")
    made.device = torch.device("cuda")
    made.trace = dataclasses.replace(trace(kernels=()), names=frozenset({"aten::mm"}))
    assert TRANSFER.evidence(made, "pinned").took_effect is None


def test_where_it_applies_and_what_it_needs(kit: Any) -> None:
    assert TRANSFER.applies(kit.scope()) == "nothing is copied to A CPU"
    plan = Builder(kit.scope(device=kit.AMPERE)).plan({"transfer": "pinned"}, "single")
    assert (plan.configuration["pipeline"], plan.skip) == ("host", "")


def test_printed_lines_are_those_that_run() -> None:
    for value, words in (("pinned", "non_blocking=True"), ("prefetch", "record_stream")):
        text = TRANSFER.usage(value, None)
        ast.parse(text)
        assert words in text
        assert text == transfer._USAGE[value]


def test_streams_are_read_from_the_profilers_file() -> None:
    events = [
        {"ph": "X", "cat": "kernel", "name": "gemm", "ts": 1, "dur": 1, "args": {"stream": 7}},
        {"ph": "X", "cat": "gpu_memcpy", "name": PINNED, "ts": 1, "dur": 1, "args": {"stream": 13}},
        {"ph": "X", "cat": "gpu_memcpy", "name": PAGEABLE, "ts": 1, "dur": 1, "args": {}},
    ]
    found = from_events(events)
    assert found.copy_streams == (13, None)
    assert found.kernel_streams == {7}
