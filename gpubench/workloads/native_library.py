"""Builds a C++ file of operators on first use, once for all processes of a machine, and loads it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpubench.errors import GpubenchError


@dataclass(frozen=True, kw_only=True)
class NativeLibrary:
    """A source file that registers CPU kernels with torch."""

    source: Path
    name: str  # of the library
    what: str  # in sentences: "the native scan"
    instead: str  # what to do where it cannot be built
    headers: tuple[Path, ...] = ()  # of ours, beside the source
    flags: tuple[str, ...] = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno")

    @property
    def file(self) -> Path:
        """Where the library is once it is built."""
        return self.folder() / f"{self.name}.so"

    def unavailable(self) -> str | None:
        """Why the library can neither be had from the cache nor be built here, as one sentence; None where it can."""
        from torch.utils.cpp_extension import is_ninja_available

        compiler = shlex.split(os.environ.get("CXX", "")) or ["c++"]
        if self.file.is_file():
            return None
        if shutil.which(compiler[0]) is None:
            return f"{self.what} needs a C++ compiler, and there is no {compiler[0]!r} on the PATH (CXX names another)"
        if not is_ninja_available():
            return f"torch builds {self.what} by ninja, which is not on the PATH (pip install ninja)"
        return None

    def load(self) -> None:
        """Registers the kernels, after building them where no process has done so yet; not twice in a process.

        Raises GpubenchError where that fails.
        """
        import torch

        library = self.file
        try:
            with _alone(library.parent):
                if not library.is_file():
                    self._build(library)
            torch.ops.load_library(library)
        except (OSError, RuntimeError) as error:
            lines = [line for line in str(error).splitlines() if ": error:" in line] or str(error).splitlines()
            message = f"{self.what[0].upper()}{self.what[1:]} could not be built in {library.parent}: {lines[0]}."
            raise GpubenchError(message, self.instead) from error

    def folder(self) -> Path:
        """Where the library of this source, torch and processor is kept; of this user alone."""
        import torch

        cpu = Path("/proc/cpuinfo")
        lines = cpu.read_text().splitlines() if cpu.exists() else []
        processor = [line for line in lines if line.startswith("flags")][:1]
        texts = [path.read_text() for path in (self.source, *self.headers)]
        parts = (*texts, *self.flags, torch.__version__, os.environ.get("CXX", ""), *processor)
        digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
        name = f"{self.source.stem.replace('_', '-')}-{digest}"
        with contextlib.suppress(OSError, RuntimeError):  # no home, or one that cannot be written to
            root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
            return _made(root / "gpubench" / name)
        return _made(Path(tempfile.gettempdir()) / f"gpubench-cache-{os.getuid()}" / name)

    def _build(self, library: Path) -> None:
        if reason := self.unavailable():
            raise OSError(reason)
        from torch.utils import cpp_extension

        with tempfile.TemporaryDirectory(dir=library.parent) as work:
            # torch's own lock is a file in the folder, which a killed process leaves behind: this folder is ours alone.
            cpp_extension.load(
                self.name,
                [str(self.source)],
                extra_cflags=list(self.flags),
                extra_ldflags=["-fopenmp"],
                build_directory=work,
                with_cuda=False,
                is_python_module=False,
            )
            next(Path(work).glob("*.so")).replace(library)


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
