"""A worker: answers the tool's requests in the measured process."""

from __future__ import annotations

import contextlib
import traceback

from gpubench.errors import GpubenchError
from gpubench.text import kind_and_message, message_of
from gpubench.worker import limits
from gpubench.worker.messages import (
    Activity,
    Channel,
    CheckLast,
    Closed,
    CollectEvidence,
    Describe,
    Failed,
    MakeReference,
    MeasureMemory,
    Prepare,
    SeeRange,
    TakeSamples,
    WorkerReply,
    WorkerRequest,
)
from gpubench.worker.once import describe, make_reference
from gpubench.worker.prepared_model import PreparedModel, Shared


def serve(channel: Channel[WorkerRequest]) -> int:
    """Answers requests until the tool closes the connection; returns the exit code."""
    session = Session(channel)
    with contextlib.suppress(Closed):
        while True:
            request = channel.receive()
            try:
                channel.send(session.answer(request))
            except Closed:
                raise
            except BaseException as error:  # noqa: BLE001 - whatever a model raises becomes the row's reason
                failed = failure(error)
                with contextlib.suppress(Exception):  # the log may be gone
                    traceback.print_exc()
                channel.send(failed)
    return 0


def failure(error: BaseException) -> Failed:
    """The error as a message: its kind and one sentence."""
    if isinstance(error, GpubenchError):
        return Failed("usage", error.message, error.hint)
    if isinstance(error, Shared):
        return Failed("shared", "the workload's models share modules")
    kind = "oom" if limits.is_out_of_memory(error) else "failed"
    return Failed(kind, kind_and_message(error), message_of(error).strip()[:4000])


class Session:
    """The prepared models of this worker by number: usually one, several if they are compared in one process."""

    def __init__(self, channel: Channel[WorkerRequest]) -> None:
        self.channel = channel
        self.models: dict[int, PreparedModel] = {}

    def answer(self, request: WorkerRequest) -> WorkerReply:
        """The reply to one request."""
        match request:
            case Describe():
                return describe(request, self.tell)
            case MakeReference():
                return make_reference(request)
            case Prepare():
                model = PreparedModel(request, self.tell)
                reply = model.prepare([other.context.model for other in self.models.values()])
                self.models[request.model] = model
                return reply
            case TakeSamples():
                return self.models[request.model].sample(request.blocks)
            case CheckLast():
                return self.models[request.model].check_last(every_batch=request.every_batch)
            case MeasureMemory():
                return self.models[request.model].measure_memory()
            case CollectEvidence():
                return self.models[request.model].collect_evidence(whole=request.whole)
            case SeeRange():
                return self.models[request.model].see_range()

    def tell(self, phase: str) -> None:
        """Reports the phase that begins to the tool."""
        self.channel.send(Activity(phase))
