"""The library of the native scan: linear_scan.cpp, built on first use."""

from __future__ import annotations

import functools
from pathlib import Path

from gpubench.workloads.native_library import NativeLibrary

SOURCE = Path(__file__).with_name("linear_scan.cpp")
NAME = "gpubench_linear_scan"
FLAGS = NativeLibrary.flags
INSTEAD = "Use another value of scan, or mend that."


def _library() -> NativeLibrary:
    return NativeLibrary(source=SOURCE, name=NAME, what="the native scan", instead=INSTEAD, flags=FLAGS)


def unavailable() -> str | None:
    """Why the library can neither be had from the cache nor be built here, as one sentence; None where it can."""
    return _library().unavailable()


@functools.cache
def load() -> None:
    """Registers the CPU kernels of gpubench::linear_scan, after building them where no process has done so yet.

    Raises GpubenchError where that fails.
    """
    _library().load()


def cache_folder() -> Path:
    """Where the library of this source, torch and processor is kept; of this user alone."""
    return _library().folder()
