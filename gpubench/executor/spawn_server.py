"""Workers without fork: a new interpreter for each, which loads torch anew. Slower to start, otherwise the same."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from gpubench.executor.fork_server import ForkServer, server_environment, start_module
from gpubench.executor.worker_process import OnPhase, Worker
from gpubench.worker.messages import Channel, ToolchainReady, WorkerReply

CHOICE = "GPUBENCH_WORKERS"  # environment variable: "fork" or "spawn", where the default is not wanted


def make_server(
    environment: Mapping[str, str], reference: str, folder: Path, python: str = sys.executable
) -> WorkerServer:
    """The kind of server that this system can have: forking on Linux, else spawning. `python` runs it.

    macOS has fork, but its frameworks do not survive it (CPython made spawn the default there in 3.8).
    """
    default = "fork" if sys.platform == "linux" else "spawn"
    if os.environ.get(CHOICE, default) == "spawn":
        return SpawnServer(environment, folder, python)
    return ForkServer(environment, reference, folder, python)


class SpawnServer:
    """Starts a new interpreter for every worker."""

    preload_problem = ""
    timeout_s = math.inf  # nothing is imported here
    on_phase: OnPhase = staticmethod(lambda _: None)

    def __init__(self, environment: Mapping[str, str], folder: Path, python: str = sys.executable) -> None:
        self.environment, self.folder, self.python = dict(environment), folder, python
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._count = 0

    def start(self) -> None:
        """Nothing is shared, so there is nothing to load ahead."""

    def wait_ready(self) -> None:
        """A worker can be had at any time."""

    def prepare_toolchain(self, folder: Path | None) -> ToolchainReady:
        """Nothing could be handed on: each worker's compiler is probed as a part of its compilation."""
        return ToolchainReady()

    def fork(self) -> Worker:
        """A fresh worker."""
        self._count += 1
        log = self.folder / f"worker-{id(self)}-{self._count}.log"
        environment = server_environment(self.environment, self.python, self.folder)
        process, ours = start_module(self.python, ["gpubench.worker"], environment, log)
        self._processes[process.pid] = process
        return Worker(self, process.pid, Channel[WorkerReply](ours, WorkerReply), log)

    def wait(self, pid: int, timeout: float) -> int | None:
        """The exit code of a worker, or None where it does not end in `timeout` seconds."""
        try:
            return self._processes[pid].wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def knows(self, pid: int) -> bool:
        """Whether that worker has not ended, as far as is known: it has no server that it could end with."""
        return pid in self._processes

    def forget(self, pid: int) -> None:
        """That worker has ended."""
        self._processes.pop(pid, None)

    def close(self) -> None:
        """Ends every worker that still runs."""
        for process in self._processes.values():
            process.kill()
            process.wait()
        self._processes.clear()


WorkerServer: TypeAlias = ForkServer | SpawnServer
