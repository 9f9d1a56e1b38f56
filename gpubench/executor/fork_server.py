"""The fork server seen from the tool: started in an environment of its own, asked for workers, ended."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import gpubench
from gpubench.errors import GpubenchError
from gpubench.executor.worker_process import OnPhase, Worker, WorkerError, describe_exit, expect, receive, tail
from gpubench.hardware.find_device import CUDA_ENVIRONMENT
from gpubench.streams import fill_closed
from gpubench.worker.messages import (
    Activity,
    Channel,
    Closed,
    Exited,
    Fork,
    Forked,
    PrepareToolchain,
    Ready,
    ServerReply,
    ToolchainReady,
    WorkerReply,
)
from gpubench.worker.server import kill_group

START_TIMEOUT_S = 180.0  # importing torch takes 2 to 5 s, from a cold network file system a minute and more


class ForkServer:
    """A process with torch imported that forks workers; one for each set of environment variables."""

    timeout_s = math.inf  # for the import of the workload's module
    on_phase: OnPhase = staticmethod(lambda _: None)

    def __init__(
        self, environment: Mapping[str, str], reference: str, folder: Path, python: str = sys.executable
    ) -> None:
        self.environment = dict(environment)
        self.reference, self.folder, self.python = reference, folder, python
        self.workers: dict[int, Worker] = {}
        self.preload_problem = ""
        self._exits: dict[int, int] = {}
        self._count = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel[ServerReply]
        self._preload = True
        self._ended = False  # by itself: its connection is closed

    def start(self) -> None:
        """Starts the server without waiting for it."""
        self.log = self.folder / f"server-{os.getpid()}-{id(self)}.log"
        arguments = ["gpubench.worker.server", *([self.reference] if self._preload else [])]
        environment = server_environment(self.environment, self.python, self.folder)
        self._process, ours = start_module(self.python, arguments, environment, self.log)
        self._channel = Channel[ServerReply](ours, ServerReply)
        self._ready = self._ended = False

    def wait_ready(self) -> None:
        """Waits until torch is imported; GpubenchError with the log's last line where that fails."""
        if self._process is None:
            self.start()
        if self._ready:
            return
        phase = ""
        try:
            reply = self._receive(time.monotonic() + START_TIMEOUT_S)
            if isinstance(reply, Activity):  # torch is imported, and the user's module comes next
                phase = reply.name
                self.on_phase(phase)
                reply = self._receive(time.monotonic() + self.timeout_s, phase)
        except (Closed, TimeoutError) as error:
            process = self._process
            self.close()
            last = (tail(self.log).splitlines() or ["it printed nothing"])[-1]
            if isinstance(error, Closed) and process and process.returncode < 0:
                last = describe_exit(process.returncode, "it")
            if phase and isinstance(error, TimeoutError):
                raise took_too_long(phase, self.timeout_s, last) from error
            raise GpubenchError(
                f"The measuring process could not start: {last.rstrip('.')}.",
                "Run `gpubench doctor` to see what is missing.",
            ) from error
        ready = expect(reply, Ready)
        self._ready = True
        if ready.preload_problem and self._preload:
            # Workers of this server would inherit a broken CUDA or threads that fork has lost: begin again without.
            self.preload_problem = ready.preload_problem
            self._preload = False
            self.close()
            self.start()
            self.wait_ready()

    def prepare_toolchain(self, folder: Path | None) -> ToolchainReady:
        """Loads inductor, and has it probe its compiler; see PrepareToolchain."""
        self.wait_ready()
        try:
            self._channel.send(PrepareToolchain(None if folder is None else str(folder)))
            return expect(self._receive(time.monotonic() + START_TIMEOUT_S), ToolchainReady)
        except (Closed, TimeoutError):  # then each compilation asks the compiler itself, and tells what is wrong
            self.close()
            return ToolchainReady()

    def fork(self) -> Worker:
        """A fresh worker. A server that has died is started again once."""
        for _ in range(2):
            try:
                self.wait_ready()
                return self._fork()
            except (Closed, TimeoutError):
                self.close()
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

    def _receive(self, deadline: float, phase: str = "") -> ServerReply:
        while True:
            reply = receive(self._channel, deadline, lambda: self.on_phase(phase or "importing torch"))
            if not isinstance(reply, Exited):
                return reply
            self._exits[reply.pid] = reply.code

    def wait(self, pid: int, timeout: float) -> int | None:
        """The exit code of a worker, or None where it does not end (or the server is gone)."""
        deadline = time.monotonic() + timeout
        while pid not in self._exits:
            if not self.knows(pid):
                return None
            try:
                reply = self._channel.receive(max(0.001, deadline - time.monotonic()))
            except TimeoutError:
                return None
            except Closed:
                self._ended = True
                return None
            if isinstance(reply, Exited):
                self._exits[reply.pid] = reply.code
        return self._exits.pop(pid)

    def knows(self, pid: int) -> bool:
        """Whether the server that forked that worker still runs; the worker has ended with it otherwise."""
        return pid in self.workers and not self._ended

    def forget(self, pid: int) -> None:
        """That worker has ended."""
        self.workers.pop(pid, None)

    def close(self) -> None:
        """Ends the server and every worker of it."""
        process, self._process = self._process, None
        if process is None:
            return
        for pid in self.workers:
            kill_group(pid)
        self._channel.socket.close()
        try:
            process.wait(timeout=2)  # it sees the closed connection
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        kill_group(process.pid)  # what the workload's import has started
        self.workers.clear()


def took_too_long(phase: str, timeout_s: float, last: str) -> GpubenchError:
    """What did not end in time, with the last that its process printed."""
    return GpubenchError(
        f"{phase[0].upper()}{phase[1:]} did not end within {timeout_s:g} s. The last line of its output: {last}.",
        "See whether it waits for the network, a lock or an input; where it only takes long, raise --timeout.",
    )


def start_module(
    python: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A process that runs the module `arguments[0]`, and our end of a connection.

    The number of its own end is its first argument, before the rest of `arguments`.
    """
    fill_closed()  # subprocess gives the child's output the numbers 1 and 2, which must not be the connection's
    ours, theirs = socket.socketpair()
    module, *others = arguments
    with theirs, log.open("ab") as output:
        process = subprocess.Popen(
            [python, "-P", "-m", module, str(theirs.fileno()), *others],
            env=environment,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # ctrl-C reaches the tool alone, which then ends this
        )
    return process, ours


def server_environment(extra: Mapping[str, str], python: str, folder: Path) -> dict[str, str]:
    """The environment of a process that `python` runs: the user's own, what toggles add, and what keeps fork safe."""
    package = Path(gpubench.__file__).parent
    if python != sys.executable:
        # Another environment: this gpubench and nothing else of ours, least of all our torch.
        paths = [str(alone(package, folder / "package"))]
    else:
        # A checkout is not importable by itself; site-packages must not come before the standard library.
        installed = package.parent.name in ("site-packages", "dist-packages")
        paths = [] if installed else [str(package.parent)]
    paths += [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    return {
        **CUDA_ENVIRONMENT,
        **os.environ,
        "TMPDIR": str(folder.parent),  # where compilers and the profiler can work; see scratch_root
        # One order of sets of strings for all processes: the user's own choice, but for a random one.
        "PYTHONHASHSEED": _hash_seed(os.environ.get("PYTHONHASHSEED", "")),
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        **extra,
    }


def _hash_seed(own: str) -> str:
    return own if own.isdigit() else "0"


def alone(package: Path, folder: Path) -> Path:
    """`folder` with a link to `package` in it."""
    folder.mkdir(exist_ok=True)
    link = folder / package.name
    if not link.is_symlink():
        link.symlink_to(package, target_is_directory=True)
    return folder
