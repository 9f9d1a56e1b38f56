"""Folders that last as long as a run; those of runs that were killed are deleted by the next one."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gpubench.errors import GpubenchError

PREFIX = "gpubench-run-"
UNLOCKED = "gpubench-new-"  # a folder is called so until its run holds its lock
LOCK = "lock"  # the file in it that its run holds locked

# Compilers' command lines, lists of paths and the profiler's JSON take these unquoted.
SAFE = re.compile(r"[A-Za-z0-9_./+@~-]+")
ELSEWHERE = ("/tmp", "/var/tmp", "/dev/shm")


@contextlib.contextmanager
def scratch_folder(purpose: str = "") -> Iterator[Path]:
    """A new folder with `purpose` in its name; it is gone afterwards.

    A lock says that it is in use. A process id would not: containers that share the folder count their own.
    """
    root, _ = scratch_root()
    remove_abandoned_scratch(root)
    new = Path(tempfile.mkdtemp(prefix=f"{UNLOCKED}{purpose}", dir=root))
    with (new / LOCK).open("w") as lock:
        with contextlib.suppress(OSError):  # a file system without locks: nobody can take it for abandoned either
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder = new.rename(root / new.name.replace(UNLOCKED, PREFIX, 1))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned_scratch(root: Path) -> None:
    """Deletes what runs that were killed have left in `root`: their locks are free."""
    for path in root.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), (path / LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)


def scratch_root() -> tuple[Path, str]:
    """The folder for temporary files, and why it is not the one that the user has set, or "".

    Raises GpubenchError where there is none that all tools can work in.
    """
    try:
        chosen = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise GpubenchError(
            "No folder for temporary files can be written.", "Free some space, or set TMPDIR."
        ) from error
    problem = unusable(chosen)
    for root in [chosen, *map(Path, ELSEWHERE)] if problem else [chosen]:
        if not unusable(root):
            return root, problem
    raise GpubenchError(
        f"The folder for temporary files cannot be used: {problem}.",
        "Set TMPDIR to a folder with plain letters in its path on a disk from which programs may run.",
    )


def unusable(root: Path) -> str:
    """Why compilers or the profiler would fail with their files in `root`, as a clause; "" where they work."""
    if not SAFE.fullmatch(str(root)):
        return "its path has characters other than ASCII letters, digits and ._/+@~-, on which compilers fail"
    try:
        with tempfile.TemporaryFile(dir=root) as file:
            file.write(b"\0")
            file.flush()
            try:
                mmap.mmap(file.fileno(), 1, prot=mmap.PROT_READ | mmap.PROT_EXEC).close()
            except OSError:
                return "it is mounted noexec, so compiled code cannot be loaded from there"
    except OSError as error:
        return f"it cannot be written ({error.strerror})"
    return ""
