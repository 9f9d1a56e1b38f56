"""Runs the command line as a user does, and sees what it leaves behind."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

from gpubench.cli.main import run
from gpubench.report import store
from gpubench.report.model import Measurement

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "tests" / "study" / "models.py"
# A test that is not about a quiet machine needs its recommendation on a busy one too.
BUSY = ["--allow", "contaminated", "--allow", "unsteady", "--allow", "swapped"]


def environment(more: dict[str, str] | None = None) -> dict[str, str]:
    """This process's environment, with the checkout importable."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **(more or {})}


def gpubench_here(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The same as `gpubench` without a process of its own: where it is not the command's process that is tested."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd),
        mock.patch.dict(os.environ, env or {}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = run(list(arguments))
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def gpubench(
    *arguments: str, cwd: Path, timeout: float = 240, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`python -m gpubench ARGUMENTS` in folder `cwd`."""
    return subprocess.run(
        [sys.executable, "-m", "gpubench", *arguments],
        cwd=cwd,
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def start(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """The same without waiting for it. Its scratch folder is `cwd`/scratch, which its processes' environment names."""
    scratch = cwd / "scratch"
    scratch.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "gpubench", *arguments],
        cwd=cwd,
        env={**environment(env), "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests themselves run in a script's background or under nohup, signals are ignored and would stay so.
        preexec_fn=lambda: [signal.signal(one, signal.SIG_DFL) for one in (signal.SIGINT, signal.SIGHUP)],
    )


def wait_for_rows(path: Path, count: int) -> list[Measurement]:
    """The rows of the report at `path` as soon as there are `count`."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if path.exists() and len(rows := store.load(path).measurements) >= count:
            return rows
        time.sleep(0.05)
    raise AssertionError(f"no {count} rows in {path} in time")


def processes_mentioning(text: str) -> list[str]:
    """Command lines of the running processes whose environment holds `text`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if text in path.read_bytes().decode(errors="replace"):
                found.append(path.parent.joinpath("cmdline").read_text().replace("\0", " "))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def wait_until_gone(text: str) -> list[str]:
    """Those processes once there are none, or the ones that are left after 20 s."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if not (found := processes_mentioning(text)):
            return []
        time.sleep(0.1)
    return found
