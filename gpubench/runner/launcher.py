"""Starts fork servers and workers, talks to them within time limits, and ends them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

import gpubench
from gpubench.errors import GpubenchError
from gpubench.worker.messages import (
    Channel,
    Closed,
    Exited,
    Failed,
    Fork,
    Forked,
    Phase,
    PrepareToolchain,
    Ready,
    ServerReply,
    ToolchainReady,
    WorkerReply,
    WorkerRequest,
)

START_TIMEOUT_S = 180.0  # importing torch takes 2 to 5 s, from a cold network file system a minute and more
EXIT_WAIT_S = 10.0  # a killed process with a GPU context needs up to seconds to be gone
TAIL_BYTES = 4000  # of a worker's log, kept in the report

Reply = TypeVar("Reply", bound=msgspec.Struct)
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


def tail(path: Path) -> str:
    """The end of a log file, at most `TAIL_BYTES`; empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            return file.read().decode(errors="replace").strip()
    except FileNotFoundError:
        return ""


class Server(Protocol):
    """Gives fresh workers in one environment."""

    preload_problem: str

    def start(self) -> None:
        """Begins to load torch, without waiting for it."""

    def wait_ready(self) -> None:
        """Waits until workers can be had; GpubenchError where that fails."""

    def prepare_toolchain(self, folder: Path) -> ToolchainReady:
        """Has inductor probe its compiler."""

    def fork(self) -> Worker:
        """A fresh worker; WorkerError where there can be none."""

    def wait(self, pid: int, timeout: float) -> int | None:
        """The exit code of a worker, or None where it does not end."""

    def forget(self, pid: int) -> None:
        """That worker has ended."""

    def close(self) -> None:
        """Ends the server and every worker of it."""


class Worker:
    """One measured process."""

    def __init__(self, server: Server, pid: int, channel: Channel[WorkerReply], log: Path) -> None:
        self.server, self.pid, self.channel, self.log = server, pid, channel, log
        self.phase = "start"

    def ask(
        self,
        request: WorkerRequest,
        reply: type[Reply],
        deadline: float | None = None,
        on_phase: OnPhase | None = None,
    ) -> Reply:
        """The worker's answer to `request`.

        `deadline` is a time.monotonic() time. Raises WorkerFailed where the worker says that it failed, WorkerError
        where it ended or ran out of time; it is dead then.
        """
        try:
            self.channel.send(request)
            while True:
                left = None if deadline is None else max(0.001, deadline - time.monotonic())
                message = self.channel.receive(left)
                if isinstance(message, Phase):
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
            raise WorkerError("crashed", describe_exit(self.end()), self.phase) from None
        except (msgspec.DecodeError, msgspec.ValidationError, ValueError) as error:
            self.kill()
            raise WorkerError("crashed", f"its answer was not understood: {error}", self.phase) from None

    def kill(self) -> None:
        """Ends the worker and all that it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.end()

    def end(self) -> int | None:
        """Closes the connection and waits for the end; the exit code, negative for a signal, None if unknown."""
        self.channel.socket.close()
        code = self.server.wait(self.pid, EXIT_WAIT_S)
        if code is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            code = self.server.wait(self.pid, EXIT_WAIT_S)
        self.server.forget(self.pid)
        return code

    def log_tail(self) -> str:
        """The end of what the worker printed."""
        return tail(self.log)


def describe_exit(code: int | None) -> str:
    """How a process ended, as a clause."""
    if code is None:
        return "the worker stopped answering and could not be found again"
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hint = " (the kernel's out-of-memory killer sends this signal too)" if -code == signal.SIGKILL else ""
        return f"the worker was ended by {name}{hint}"
    return f"the worker exited by itself with code {code}"


class ForkServer:
    """A process with torch imported that forks workers; one for each set of environment variables."""

    def __init__(self, environment: Mapping[str, str], reference: str, folder: Path) -> None:
        self.environment = dict(environment)
        self.reference, self.folder = reference, folder
        self.workers: dict[int, Worker] = {}
        self.preload_problem = ""
        self.start_s = 0.0
        self._exits: dict[int, int] = {}
        self._count = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel[ServerReply]
        self._preload = True

    def start(self) -> None:
        """Starts the server without waiting for it."""
        ours, theirs = socket.socketpair()
        log = self.folder / f"server-{os.getpid()}-{id(self)}.log"
        self.log = log
        arguments = [sys.executable, "-m", "gpubench.worker.server", str(theirs.fileno())]
        if self._preload:
            arguments.append(self.reference)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                arguments,
                env=server_environment(self.environment),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # ctrl-C reaches the tool alone, which then ends this
            )
        theirs.close()
        self._channel = Channel[ServerReply](ours, ServerReply)
        self._ready = False

    def wait_ready(self) -> None:
        """Waits until torch is imported; GpubenchError with the log's last line where that fails."""
        if self._process is None:
            self.start()
        if self._ready:
            return
        try:
            reply = self._receive(time.monotonic() + START_TIMEOUT_S)
        except (Closed, TimeoutError) as error:
            self.close()
            last = (tail(self.log).splitlines() or ["it printed nothing"])[-1]
            raise GpubenchError(
                f"The measuring process could not start: {last}", "Run `gpubench doctor` to see what is missing."
            ) from error
        ready = expect(reply, Ready)
        self._ready, self.start_s = True, ready.seconds
        if ready.preload_problem and self._preload:
            # Workers of this server would inherit a broken CUDA or threads that fork has lost: begin again without.
            self.preload_problem = ready.preload_problem
            self._preload = False
            self.close()
            self.start()
            self.wait_ready()

    def prepare_toolchain(self, folder: Path) -> ToolchainReady:
        """Has inductor probe its compiler; see ToolchainReady."""
        self.wait_ready()
        self._channel.send(PrepareToolchain(str(folder)))
        return expect(self._receive(time.monotonic() + START_TIMEOUT_S), ToolchainReady)

    def fork(self) -> Worker:
        """A fresh worker. A server that has died is started again once."""
        for attempt in (1, 2):
            try:
                self.wait_ready()
                return self._fork()
            except (Closed, TimeoutError):
                self.close()
                if attempt == 2:
                    break
        raise WorkerError("crashed", "the process that starts workers has died twice", "start")

    def _fork(self) -> Worker:
        ours, theirs = socket.socketpair()
        self._count += 1
        log = self.folder / f"worker-{id(self)}-{self._count}.log"
        try:
            self._channel.send(Fork(str(log)), (theirs.fileno(),))
        finally:
            theirs.close()
        reply = expect(self._receive(time.monotonic() + START_TIMEOUT_S), Forked)
        worker = Worker(self, reply.pid, Channel[WorkerReply](ours, WorkerReply), log)
        self.workers[reply.pid] = worker
        return worker

    def _receive(self, deadline: float) -> ServerReply:
        while True:
            reply = self._channel.receive(max(0.001, deadline - time.monotonic()))
            if not isinstance(reply, Exited):
                return reply
            self._exits[reply.pid] = reply.code

    def wait(self, pid: int, timeout: float) -> int | None:
        """The exit code of a worker, or None where it does not end (or the server is gone)."""
        deadline = time.monotonic() + timeout
        while pid not in self._exits:
            try:
                reply = self._channel.receive(max(0.001, deadline - time.monotonic()))
            except (Closed, TimeoutError):
                return None
            if isinstance(reply, Exited):
                self._exits[reply.pid] = reply.code
        return self._exits.pop(pid)

    def forget(self, pid: int) -> None:
        """That worker has ended."""
        self.workers.pop(pid, None)

    def close(self) -> None:
        """Ends the server and every worker of it."""
        process, self._process = self._process, None
        if process is None:
            return
        for pid in list(self.workers):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        self._channel.socket.close()
        try:
            process.wait(timeout=2)  # it sees the closed connection
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self.workers.clear()


def server_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of a fork server: the user's own, what toggles add, and what keeps fork safe."""
    package_parent = str(Path(gpubench.__file__).parent.parent)
    path = os.environ.get("PYTHONPATH")
    return {
        # NVML answers torch.cuda.is_available() then; the CUDA runtime's answer would break the forked children.
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        # The same device numbers in NVML, nvidia-smi and torch.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        **os.environ,
        "PYTHONPATH": f"{package_parent}{os.pathsep}{path}" if path else package_parent,
        "PYTHONUNBUFFERED": "1",
        **extra,
    }
