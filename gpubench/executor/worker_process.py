"""A worker seen from the tool: asked within time limits, ended with all that it started."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from gpubench.worker.messages import Activity, Channel, Closed, Failed, WorkerReply, WorkerRequest
from gpubench.worker.server import kill_group

if TYPE_CHECKING:
    from gpubench.executor.spawn_server import WorkerServer

EXIT_WAIT_S = 10.0  # a killed process with a GPU context needs up to seconds to be gone
STILL_S = 20.0  # after which the user hears again what is waited for
TAIL_BYTES = 4000  # of a worker's log, kept in the report

Reply = TypeVar("Reply", bound=msgspec.Struct)
Message = TypeVar("Message")
OnPhase = Callable[[str], None]


class WorkerError(Exception):
    """The worker gave no answer: how it ended, in one sentence, and in which phase."""

    def __init__(self, kind: str, reason: str, phase: str) -> None:
        super().__init__(reason)
        self.kind, self.reason, self.phase = kind, reason, phase


class WorkerFailed(Exception):
    """The worker answered that it could not do what was asked."""

    def __init__(self, failed: Failed, phase: str) -> None:
        super().__init__(failed.reason)
        self.failed, self.phase = failed, phase


def expect(message: object, kind: type[Reply]) -> Reply:
    """`message`, which must be of `kind`; ValueError otherwise."""
    if not isinstance(message, kind):
        raise ValueError(f"a {type(message).__name__} came where a {kind.__name__} was due")
    return message


def receive(channel: Channel[Message], deadline: float | None, still: Callable[[], None]) -> Message:
    """The next message; `still` is called whenever there was none for a while. TimeoutError at `deadline`."""
    while True:
        left = math.inf if deadline is None else deadline - time.monotonic()
        try:
            return channel.receive(max(0.001, min(left, STILL_S)))
        except TimeoutError:
            if left <= STILL_S:
                raise
            still()


def tail(path: Path) -> str:
    """The end of a log file, at most `TAIL_BYTES`; empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            return file.read().decode(errors="replace").strip()
    except FileNotFoundError:
        return ""


class Worker:
    """One measured process."""

    def __init__(self, server: WorkerServer, pid: int, channel: Channel[WorkerReply], log: Path) -> None:
        self.server, self.pid, self.channel, self.log = server, pid, channel, log
        self.phase = "start"
        self._ended = False
        self._code: int | None = None
        self._orphaned = False

    def ask(
        self,
        request: WorkerRequest,
        reply: type[Reply],
        deadline: float | None = None,
        on_phase: OnPhase | None = None,
    ) -> Reply:
        """The worker's answer to `request`.

        `deadline` is a time.monotonic() time; `on_phase` hears each phase as it begins, and again while it lasts.
        Raises WorkerFailed where the worker says that it failed, WorkerError where it ended or ran out of time; it is
        dead then.
        """
        try:
            self.channel.send(request)
            while True:
                message = receive(self.channel, deadline, lambda: on_phase(self.phase) if on_phase else None)
                if isinstance(message, Activity):
                    self.phase = message.name
                    if on_phase:
                        on_phase(message.name)
                elif isinstance(message, Failed):
                    raise WorkerFailed(message, self.phase)
                else:
                    return expect(message, reply)
        except TimeoutError:
            self.kill()
            raise WorkerError("timeout", f"no answer in time during {self.phase}", self.phase) from None
        except Closed:
            code = self.end()
            reason = "the process that starts workers was ended, and the worker with it"
            raise WorkerError("crashed", reason if self._orphaned else describe_exit(code), self.phase) from None
        except (msgspec.DecodeError, msgspec.ValidationError, ValueError) as error:
            self.kill()
            raise WorkerError("crashed", f"its answer was not understood: {error}", self.phase) from None

    def is_lost(self) -> bool:
        """Whether it has ended through no fault of its own: with the server that forked it."""
        return self._orphaned or not (self._ended or self.server.knows(self.pid))

    def kill(self) -> None:
        """Ends the worker and all that it started, at once; nothing where it has ended already."""
        if not self._ended:
            kill_group(self.pid)
            self.end()

    def end(self) -> int | None:
        """Closes the connection and waits for the end; the exit code, negative for a signal, None if unknown."""
        if self._ended:
            return self._code
        self._ended = True
        self.channel.socket.close()
        code = self.server.wait(self.pid, EXIT_WAIT_S)
        if code is None:
            kill_group(self.pid)
            code = self.server.wait(self.pid, EXIT_WAIT_S)
        self._orphaned = code is None and not self.server.knows(self.pid)
        self.server.forget(self.pid)
        self._code = code
        return code

    def log_tail(self) -> str:
        """The end of what the worker printed."""
        return tail(self.log)


def describe_exit(code: int | None, what: str = "the worker") -> str:
    """How a process ended, as a clause."""
    if code is None:
        return f"{what} stopped answering and could not be found again"
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hint = " (the kernel's out-of-memory killer sends this signal too)" if -code == signal.SIGKILL else ""
        return f"{what} was ended by {name}{hint}"
    return f"{what} exited by itself with code {code}"
