"""Fork servers that outlive a pool: torch is imported once for all tests of a process and not for each run.

What a fork server does is the same: every worker is a fresh process. Only the workload's module is imported by the
workers themselves. Tests of starting, preloading and ending a server do without.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from gpubench.executor import worker_pool as pool
from gpubench.executor.fork_server import ForkServer
from gpubench.executor.spawn_server import make_server
from gpubench.worker.messages import ToolchainReady

LIKE_NO_OTHER = ("PYTEST_CURRENT_TEST", "COLUMNS", "TMPDIR", "GPUBENCH_STATE", "GPUBENCH_QUICK_PROTOCOL")
MOST = 6  # servers kept: each holds 200 MB and more


class Kept(ForkServer):
    """Is ended by `end`, and whenever it has to be started again."""

    toolchain: ToolchainReady | None = None

    def close(self) -> None:
        """Ends it."""
        self.toolchain = None
        super().close()


class Lent:
    """A kept server for one pool: closing ends the pool's workers alone."""

    def __init__(self, kept: Kept) -> None:
        self.kept = kept

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kept, name)

    def start(self) -> None:
        """Starts it where it does not run."""
        if self.kept._process is None:
            self.kept.start()

    def prepare_toolchain(self, folder: Path | None) -> ToolchainReady:
        """What torch.compile needs, made ready once for each server."""
        if self.kept.toolchain is None:
            self.kept.toolchain = self.kept.prepare_toolchain(None if folder is None else self.kept.folder)
        return self.kept.toolchain

    def close(self) -> None:
        """Ends what workers are left."""
        for pid in list(self.kept.workers):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)


_kept: dict[Any, Kept] = {}
_folder: Path | None = None


def lend(environment: Mapping[str, str], reference: str, folder: Path, python: str = sys.executable) -> Any:
    """In the place of `make_server`: a server in this environment that is there already, or a new one."""
    global _folder
    if python != sys.executable or os.environ.get("GPUBENCH_WORKERS") == "spawn":
        return make_server(environment, reference, folder, python)
    if _folder is None:
        _folder = Path(tempfile.mkdtemp(prefix="gpubench-test-servers-"))
        atexit.register(end)
    inherited = {name: value for name, value in os.environ.items() if name not in LIKE_NO_OTHER}
    # A file that is named as seen from the current folder is looked for there.
    place = None if Path(reference).is_absolute() else Path.cwd()
    key = (os.getpid(), place, frozenset(environment.items()), frozenset(inherited.items()))
    if key not in _kept:
        while len(_kept) >= MOST:
            _kept.pop(next(iter(_kept))).close()
        kept = Kept(environment, reference, _folder)
        kept._preload = False
        _kept[key] = kept
    else:
        _kept[key] = _kept.pop(key)  # the one that was used last goes last
    return Lent(_kept[key])


def end() -> None:
    """Ends them all."""
    global _folder
    while _kept:
        _kept.popitem()[1].close()
    if _folder is not None:
        shutil.rmtree(_folder, ignore_errors=True)
        _folder = None


@contextlib.contextmanager
def shared_servers() -> Iterator[None]:
    """Pools made meanwhile borrow their servers."""
    with mock.patch.object(pool, "make_server", lend):
        yield


@contextlib.contextmanager
def unshared_servers() -> Iterator[None]:
    """Pools made meanwhile have servers of their own."""
    with mock.patch.object(pool, "make_server", make_server):
        yield
