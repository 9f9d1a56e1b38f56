"""Temporary folders: whose they are, when they are deleted, and where compilers can work in them."""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpubench.errors import GpubenchError
from gpubench.executor import scratch
from gpubench.executor.fork_server import server_environment
from gpubench.executor.scratch import scratch_folder, scratch_root
from gpubench.executor.worker_pool import WorkerPool
from gpubench.report.model import Protocol
from gpubench.worker.messages import WorkloadChoice
from tests.running import environment

HOLD = """
import sys
from gpubench.executor.scratch import scratch_folder
with scratch_folder("kept-") as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def other_run(root: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another run that holds a folder in the same place."""
    run = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        env=environment({"TMPDIR": str(root)}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with run:
        assert run.stdout
        yield run, Path(run.stdout.readline().strip())
        run.kill()


def test_another_run_keeps_its_folder_whatever_its_process_id_is(
    other_run: tuple[subprocess.Popen[str], Path], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another container its id may be that of no process here, or of an unlike one."""
    _, theirs = other_run

    def unknown(*_: object) -> None:
        raise ProcessLookupError

    monkeypatch.setattr(os, "kill", unknown)
    with scratch_folder() as ours:
        assert theirs.is_dir() and ours.is_dir() and theirs.parent == ours.parent == root
    assert theirs.is_dir() and not ours.exists()


def test_the_folder_of_a_killed_run_is_deleted_by_the_next(
    other_run: tuple[subprocess.Popen[str], Path], root: Path
) -> None:
    run, theirs = other_run
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert theirs.is_dir()
    (root / "gpubench-run-of-somebody-else").mkdir()  # without a lock nobody can tell: it stays
    with scratch_folder():
        assert not theirs.exists()
    assert [path.name for path in root.iterdir()] == ["gpubench-run-of-somebody-else"]


@pytest.mark.parametrize("name", ["two words", "quote'", 'quote"', "naïve", "line\nfeed", "a:b", "a,b", "$HOME", "a;b"])
def test_a_folder_that_compilers_cannot_work_in_is_not_used(root: Path, name: str, monkeypatch: Any) -> None:
    (root / name).mkdir()
    (root / "plain").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(root / name))
    monkeypatch.setattr(scratch, "ELSEWHERE", (str(root / "missing"), str(root / "plain")))
    found, problem = scratch_root()
    assert found == root / "plain"
    assert "its path has characters other than ASCII letters" in problem
    with scratch_folder() as folder:
        assert folder.parent == root / "plain"
        # Whatever a measured process writes by itself goes there too.
        assert server_environment({}, sys.executable, folder)["TMPDIR"] == str(root / "plain")


def test_a_folder_from_which_nothing_can_be_loaded_is_not_used(root: Path, monkeypatch: Any) -> None:
    """Mounted noexec, as the kernel answers then: another is taken, and where there is none, it is told."""
    real = mmap.mmap

    def noexec(number: int, *arguments: Any, **options: Any) -> mmap.mmap:
        if Path(f"/proc/self/fd/{number}").readlink().is_relative_to(root / "noexec"):
            raise PermissionError(1, "Operation not permitted")
        return real(number, *arguments, **options)

    monkeypatch.setattr(mmap, "mmap", noexec)
    for name in ("noexec", "fine"):
        (root / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(root / "noexec"))
    monkeypatch.setattr(scratch, "ELSEWHERE", (str(root / "fine"),))
    assert scratch_root() == (root / "fine", "it is mounted noexec, so compiled code cannot be loaded from there")
    shutil.rmtree(root / "fine")
    with pytest.raises(GpubenchError, match=r"cannot be used: it is mounted noexec.*Set TMPDIR to a folder"):
        scratch_root()


def test_the_report_says_where_temporary_files_went(root: Path, monkeypatch: Any) -> None:
    (root / "two words").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(root / "two words"))
    monkeypatch.setattr(scratch, "ELSEWHERE", (str(root),))
    choice = WorkloadChoice(reference="m.py:make", size=None, parameters={}, mode=None)
    with WorkerPool(choice, "cpu", Protocol()) as pool:
        assert pool.folder.parent == root
        assert pool.notes[0].startswith(f"Temporary files go to {root} instead of TMPDIR: its path has characters")
