"""Builds linear_scan.cpp on first use, once for all processes of a machine, and loads it."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gpubench.errors import GpubenchError

SOURCE = Path(__file__).with_name("linear_scan.cpp")
NAME = "gpubench_linear_scan"
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno")
INSTEAD = "Use another value of scan, or mend that."


def unavailable() -> str | None:
    """Why the library can neither be had from the cache nor be built here, as one sentence; None where it can."""
    from torch.utils.cpp_extension import is_ninja_available

    compiler = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    if (cache_folder() / f"{NAME}.so").is_file():
        return None
    if shutil.which(compiler[0]) is None:
        return f"the native scan needs a C++ compiler, and there is no {compiler[0]!r} on the PATH (CXX names another)"
    if not is_ninja_available():
        return "torch builds the native scan by ninja, which is not on the PATH (pip install ninja)"
    return None


@functools.cache
def load() -> None:
    """Registers the CPU kernels of gpubench::linear_scan, after building them where no process has done so yet.

    Raises GpubenchError where that fails.
    """
    import torch

    folder = cache_folder()
    library = folder / f"{NAME}.so"
    try:
        with _alone(folder):
            if not library.is_file():
                _build(folder, library)
        torch.ops.load_library(library)
    except (OSError, RuntimeError) as error:
        lines = [line for line in str(error).splitlines() if ": error:" in line] or str(error).splitlines()
        raise GpubenchError(f"The native scan could not be built in {folder}: {lines[0]}.", INSTEAD) from error


def cache_folder() -> Path:
    """Where the library of this source, torch and processor is kept; of this user alone."""
    import torch

    cpu = Path("/proc/cpuinfo")
    processor = [line for line in cpu.read_text().splitlines() if line.startswith("flags")][:1] if cpu.exists() else []
    parts = (SOURCE.read_text(), *FLAGS, torch.__version__, os.environ.get("CXX", ""), *processor)
    name = f"linear-scan-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"
    with contextlib.suppress(OSError, RuntimeError):  # no home, or one that cannot be written to
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return _made(root / "gpubench" / name)
    return _made(Path(tempfile.gettempdir()) / f"gpubench-cache-{os.getuid()}" / name)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.getuid() or not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} cannot be written to or is another user's")
    return folder


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time. The lock ends with its process, so that a killed one leaves no other waiting."""
    with (folder / "lock").open("w") as lock:
        with contextlib.suppress(OSError):  # a file system without locks: each builds, and the last one's is kept
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(folder: Path, library: Path) -> None:
    if reason := unavailable():
        raise OSError(reason)
    from torch.utils import cpp_extension

    with tempfile.TemporaryDirectory(dir=folder) as work:
        # torch's own lock is a file in the folder, which a killed process leaves behind: this folder is ours alone.
        cpp_extension.load(
            NAME,
            [str(SOURCE)],
            extra_cflags=list(FLAGS),
            extra_ldflags=["-fopenmp"],
            build_directory=work,
            with_cuda=False,
            is_python_module=False,
        )
        next(Path(work).glob("*.so")).replace(library)
