"""The fork server: imports torch once, then starts a fresh process for every configuration in milliseconds.

It never touches the device and never runs a tensor operation: a child of a process that has initialized CUDA or
started OpenMP's threads would be broken. One server for each set of environment variables, since allocators and
OpenMP read theirs before Python starts. Run as `python -m gpubench.worker.server FD [PRELOAD]`.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import selectors
import signal
import socket
import sys

from gpubench.worker.fork_safety import Inheritance
from gpubench.worker.messages import (
    Activity,
    Channel,
    Closed,
    Exited,
    Fork,
    Forked,
    PrepareToolchain,
    Ready,
    ServerRequest,
    ToolchainReady,
    WorkerRequest,
    importing,
)

PR_SET_PDEATHSIG = 1  # prctl(2)


def import_torch() -> None:
    """Imports what every worker is likely to need; torch.compile's back end is loaded later, if it is needed."""
    import numpy  # noqa: F401
    import torch
    import torch._dynamo  # optimizers and the evidence need it, compiled or not
    import torch.profiler  # noqa: F401

    import gpubench.measure.memory
    import gpubench.measure.quality
    import gpubench.measure.timing
    import gpubench.measure.trace
    import gpubench.workloads.loader  # noqa: F401
    from gpubench.toggles import all_toggles
    from gpubench.worker import process_settings

    all_toggles()
    process_settings.at_start()


def preload(reference: str) -> Inheritance | str:
    """Imports the workload's module once for all workers: what they inherit with it, or why that is unsafe."""
    from gpubench.errors import GpubenchError
    from gpubench.worker.seeding import IMPORT_SEED, seed_everything
    from gpubench.workloads.source import import_module_of

    inheritance = Inheritance()
    seed_everything(IMPORT_SEED)
    try:
        import_module_of(reference)
    except GpubenchError:
        return inheritance  # the worker that describes the workload reports it
    except BaseException as error:  # noqa: BLE001 - a user's module may raise anything, SystemExit too
        return f"{type(error).__name__} while it was imported"
    return inheritance.problem() or inheritance


class Server:
    """Forks workers on request and reports when they end; ends them all when the tool ends."""

    def __init__(self, channel: Channel[ServerRequest], inheritance: Inheritance | None) -> None:
        self.channel, self.inheritance = channel, inheritance
        self.children: set[int] = set()
        self.libc = ctypes.CDLL(None, use_errno=True)

    def serve(self) -> None:
        """Answers requests until the tool closes the connection."""
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_read, False)
        os.set_blocking(wake_write, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the tool handles Ctrl-C
        selector = selectors.DefaultSelector()
        selector.register(self.channel.socket, selectors.EVENT_READ)
        selector.register(wake_read, selectors.EVENT_READ)
        try:
            while True:
                ready = {key.fd for key, _ in selector.select()}
                if wake_read in ready:
                    os.read(wake_read, 4096)
                    self.reap()
                if self.channel.socket.fileno() in ready or self.channel.pending():
                    self.answer()
        except Closed:
            for pid in self.children:
                kill_group(pid)
            kill_group(os.getpid())  # this process too, and what the workload's import started

    def answer(self) -> None:
        """Handles one request."""
        request, fds = self.channel.receive_with_fds()
        if isinstance(request, PrepareToolchain):
            reply = prepare_toolchain(request.folder)
            freeze()
            self.channel.send(reply)
            return
        self.fork(request, fds[0])

    def fork(self, request: Fork, worker_fd: int) -> None:
        """Starts one worker on the socket `worker_fd`."""
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self.become_worker(request, worker_fd, parent)
        os.close(worker_fd)
        self.children.add(pid)
        self.channel.send(Forked(pid))

    def become_worker(self, request: Fork, worker_fd: int, parent: int) -> None:
        """Turns this forked process into a worker; never returns."""
        code = 70  # EX_SOFTWARE of sysexits.h: the set-up failed
        try:
            os.setsid()
            self.libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(code)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self.channel.socket.close()
            log = os.open(request.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(log, 1)
            os.dup2(log, 2)
            gc.enable()
            if self.inheritance:
                self.inheritance.give_back()
            code = run_worker(socket.socket(fileno=worker_fd))
        finally:
            with contextlib.suppress(Exception):  # the workload may have closed or replaced them
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)  # no atexit, no destructors: the device's memory goes with the process

    def reap(self) -> None:
        """Reports every worker that has ended."""
        for pid in list(self.children):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                self.children.discard(pid)
                kill_group(pid)  # and the compile workers that it left behind
                self.channel.send(Exited(pid, os.waitstatus_to_exitcode(status)))


def kill_group(pid: int) -> None:
    """Kills a process with everything that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS denies it for a group of zombies
        os.killpg(pid, signal.SIGKILL)


def run_worker(sock: socket.socket) -> int:
    """Runs a worker on `sock`; returns the exit code."""
    from gpubench.worker import process_settings
    from gpubench.worker.session import serve

    process_settings.at_start()
    return serve(Channel[WorkerRequest](sock, WorkerRequest))


def prepare_toolchain(folder: str | None) -> ToolchainReady:
    """Loads inductor and lets it probe its C++ compiler; forked workers inherit both."""
    problem = ""
    try:
        import torch._inductor.compile_fx  # noqa: F401 - workers inherit it

        if folder is not None:
            from torch._inductor.cpu_vec_isa import pick_vec_isa

            os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
            pick_vec_isa()
    except Exception as error:  # noqa: BLE001 - torch raises its own kinds here; reported as a problem
        problem = f"{type(error).__name__}: {error}".splitlines()[0]
    return ToolchainReady(problem)


def freeze() -> None:
    """Keeps the garbage collector from writing to shared pages, which would copy them into every worker."""
    gc.collect()
    gc.freeze()
    gc.disable()


def main() -> None:
    """Serves on the inherited socket named by the first argument."""
    channel = Channel[ServerRequest](socket.socket(fileno=int(sys.argv[1])), ServerRequest)
    import_torch()
    with contextlib.suppress(Closed):
        loaded: Inheritance | str | None = None
        if len(sys.argv) > 2:
            channel.send(Activity(importing(sys.argv[2])))
            loaded = preload(sys.argv[2])
        freeze()
        problem, inheritance = (loaded, None) if isinstance(loaded, str) else ("", loaded)
        channel.send(Ready(problem))
        Server(channel, inheritance).serve()


if __name__ == "__main__":
    main()
