"""One worker: answers the tool's requests, in the process that is measured."""

from __future__ import annotations

import traceback

from gpubench.errors import GpubenchError
from gpubench.worker import limits
from gpubench.worker.messages import (
    Channel,
    CheckLast,
    Closed,
    CollectEvidence,
    Describe,
    Failed,
    MakeReference,
    MeasureMemory,
    Phase,
    Prepare,
    TakeSamples,
    WorkerReply,
    WorkerRequest,
)
from gpubench.worker.once import describe, make_reference
from gpubench.worker.prepared_model import PreparedModel, Shared


def serve(channel: Channel[WorkerRequest]) -> int:
    """Answers until the tool goes away; the exit code."""
    session = Session(channel)
    while True:
        try:
            request = channel.receive()
        except Closed:
            return 0
        try:
            reply = session.answer(request)
        except Closed:
            return 0
        except BaseException as error:  # noqa: BLE001 - whatever a model raises becomes a row
            traceback.print_exc()
            reply = failure(error)
        try:
            channel.send(reply)
        except Closed:
            return 0


def failure(error: BaseException) -> Failed:
    """What went wrong, in one sentence and by kind."""
    if isinstance(error, GpubenchError):
        return Failed("usage", error.message, error.hint)
    if isinstance(error, Shared):
        return Failed("shared", "the workload's models share modules")
    lines = said(error).strip().splitlines() or [""]
    text = f"{type(error).__name__}: {lines[0]}".strip().removesuffix(":")
    return Failed("oom" if limits.is_out_of_memory(error) else "failed", text[:500], "\n".join(lines)[:4000])


def said(error: BaseException) -> str:
    """The error's text as it can be sent: a user's exception may hold half characters, or fail to be printed."""
    try:
        return str(error).encode("utf-8", "replace").decode()
    except Exception as second:  # noqa: BLE001 - whatever its __str__ raises
        return f"(its text cannot be had: {type(second).__name__})"


class Session:
    """The residents of this worker, by number: mostly one, several where they are compared inside one process."""

    def __init__(self, channel: Channel[WorkerRequest]) -> None:
        self.channel = channel
        self.residents: dict[int, PreparedModel] = {}

    def answer(self, request: WorkerRequest) -> WorkerReply:
        """The reply to one request."""
        match request:
            case Describe():
                return describe(request)
            case MakeReference():
                return make_reference(request)
            case Prepare():
                resident = PreparedModel(request, self.tell)
                reply = resident.prepare([one.context.model for one in self.residents.values()])
                self.residents[request.resident] = resident
                return reply
            case TakeSamples():
                return self.residents[request.resident].sample(request.blocks)
            case CheckLast():
                return self.residents[request.resident].check_last(every_batch=request.every_batch)
            case MeasureMemory():
                return self.residents[request.resident].measure_memory()
            case CollectEvidence():
                return self.residents[request.resident].collect_evidence()

    def tell(self, phase: str) -> None:
        """Tells the tool what begins now."""
        self.channel.send(Phase(phase))
