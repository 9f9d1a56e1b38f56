"""A worker answers whatever the workload raises, names or does to the process's streams."""

from __future__ import annotations

import socket
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from gpubench.worker.limits import is_out_of_memory
from gpubench.worker.messages import Channel, Checked, CheckLast, Failed, WorkerReply, WorkerRequest
from gpubench.worker.prepared_model import PreparedModel
from gpubench.worker.session import Session, serve


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


def answer_to(monkeypatch: pytest.MonkeyPatch, answer: Any) -> WorkerReply:
    """What the tool gets where a worker's session makes `answer` of its request."""
    monkeypatch.setattr(Session, "answer", answer)
    ours, theirs = socket.socketpair()
    channel = Channel[WorkerReply](ours, WorkerReply)
    with ours, theirs:
        channel.send(CheckLast(model=0, every_batch=False))
        ours.shutdown(socket.SHUT_WR)
        assert serve(Channel[WorkerRequest](theirs, WorkerRequest)) == 0
        return channel.receive(timeout=10)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Mute(), "Mute: (its message cannot be shown: ValueError)"),
        (RuntimeError(), "RuntimeError"),
        (ValueError("one\ud800\ntwo"), "ValueError: one?"),
        (SystemExit(3), "SystemExit: 3"),
    ],
)
def test_whatever_is_raised_is_told(monkeypatch: pytest.MonkeyPatch, error: BaseException, reason: str) -> None:
    def raising(*_: object) -> WorkerReply:
        raise error

    reply = answer_to(monkeypatch, raising)
    assert isinstance(reply, Failed)
    assert (reply.kind, reply.reason) == ("failed", reason)
    assert not is_out_of_memory(error)


def test_an_answer_that_is_no_text_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    reply = answer_to(monkeypatch, lambda *_: Failed("failed", "a\udcff"))
    assert isinstance(reply, Failed)
    assert reply.reason.startswith("UnicodeEncodeError")


def test_an_answer_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    assert answer_to(monkeypatch, lambda *_: Checked(None)) == Checked(None)


def test_the_workload_may_take_standard_output_away(monkeypatch: pytest.MonkeyPatch) -> None:
    request: Any = SimpleNamespace(protocol=None)
    told: list[str] = []
    model = PreparedModel(request, told.append)
    monkeypatch.setattr(sys, "stdout", None)
    with model.phase("build"):
        pass
    assert (told, list(model.phases)) == (["build"], ["build"])
