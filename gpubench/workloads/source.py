"""Where a workload's code is: a bundled module, an entry point, `FILE.py:NAME` or `package.module:NAME`."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from gpubench.errors import GpubenchError, unknown_name
from gpubench.plugins import load_plugin
from gpubench.text import encodable, kind_and_message
from gpubench.workloads.catalog import SUMMARIES, names, plugins

FORMS = "Give a name that `gpubench workloads` lists, FILE.py:NAME or package.module:NAME."


@dataclass(frozen=True)
class SourceFile:
    """The object that a reference names."""

    target: Any
    file: Path | None  # of a user's code; None for a bundled workload
    source_hash: str | None  # SHA-256 of that file


def find(reference: str) -> SourceFile:
    """The object that `reference` names. Raises GpubenchError saying which part of it is wrong."""
    place, name = _split(reference)
    module = import_module_of(reference)
    if reference in SUMMARIES:
        return SourceFile(getattr(module, reference), None, None)
    if not name:
        return _in_module(load_plugin("workload", plugins()[reference], object), module)
    if not hasattr(module, name):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise unknown_name(f"name in {place}", name, public)
    return _in_module(getattr(module, name), module)


def _in_module(target: Any, module: ModuleType) -> SourceFile:
    file = Path(module.__file__) if module.__file__ else None
    digest = hashlib.sha256(file.read_bytes()).hexdigest() if file else None
    return SourceFile(target, file, digest)


def check_reference(reference: str) -> None:
    """Raises GpubenchError if `reference` is invalid, as far as that is known without importing anything."""
    place, _ = _split(reference)
    if encodable(reference) != reference:
        raise GpubenchError(
            f"The workload {reference!r} has bytes in its path that are no UTF-8, which no report can hold.",
            "Change to its folder and name it from there, or rename it.",
        )
    if place.endswith(".py") or "/" in place:
        _check_file(Path(place))


def import_module_of(reference: str) -> ModuleType:
    """The module that contains `reference`, imported once. Raises GpubenchError like `find`."""
    place, name = _split(reference)
    if reference in SUMMARIES:
        return importlib.import_module(f"gpubench.workloads.{reference}")
    if not name:
        load_plugin("workload", plugins()[reference], object)
        return sys.modules[plugins()[reference].module]
    return _from_file(Path(place)) if place.endswith(".py") or "/" in place else _from_package(place)


def _split(reference: str) -> tuple[str, str]:
    """File or package, and NAME; both empty for a workload that has a name."""
    place, colon, name = reference.rpartition(":")
    if colon and name and place:
        return place, name
    if colon:
        raise GpubenchError(f"The workload {reference!r} lacks {'a NAME' if place else 'a file or package'}.", FORMS)
    if reference.endswith(".py") or "/" in reference:
        raise GpubenchError(
            f"The workload {reference!r} does not say which NAME in the file.", f"Give {reference}:NAME."
        )
    if reference not in names():
        raise unknown_name("workload", reference, names(), "Your own: FILE.py:NAME or package.module:NAME.")
    return "", ""


def _check_file(path: Path) -> None:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise GpubenchError(f"The workload file {str(path)!r} {what}.", "Give the path of a Python file.")


def _from_file(path: Path) -> ModuleType:
    _check_file(path)
    full = path.resolve()
    # A unique name, so that a file called torch.py or vae.py hides no other module; it changes when the file does.
    name = f"gpubench_user_{hashlib.sha256(os.fsencode(full) + full.read_bytes()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, full)
    if spec is None or spec.loader is None:
        raise GpubenchError(f"The workload file {str(path)!r} is not a Python file.", "Its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look up a class's module there
    try:
        with _first_on_path(full.parent), blaming(f"Importing {path}", full):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _from_package(name: str) -> ModuleType:
    with contextlib.suppress(OSError):  # a deleted current folder holds no module
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.append(here)  # last, so that a file here hides no module of the standard library
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise GpubenchError(
            f"There is no module {name!r} to take the workload from.",
            "Install its package, or give the file: FILE.py:NAME.",
        )
    file = Path(spec.origin) if spec.origin else None
    with blaming(f"Importing {name}", file):
        return importlib.import_module(name)


@contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    """Puts the file's folder first on the path during its import, and last afterwards for later imports."""
    entry = str(folder)
    sys.path.insert(0, entry)
    here = os.getcwd()  # noqa: PTH109 - restored in case the file changes it
    try:
        yield
        os.chdir(here)
    finally:
        sys.path.remove(entry)
        if entry not in sys.path:
            sys.path.append(entry)


@contextmanager
def blaming(what: str, file: Path | None) -> Iterator[None]:
    """Turns any error of the user's code into one sentence with its line; passes GpubenchError on."""
    try:
        yield
    except GpubenchError:
        raise
    except (Exception, SystemExit) as error:
        where = f" at line {line}" if (line := _line(error, file)) else ""
        raise GpubenchError(
            f"{what} failed{where}: {kind_and_message(error)}.", "Run the file with Python to see the whole error."
        ) from error


def _line(error: BaseException, file: Path | None) -> int | None:
    if file is None:
        return None
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename) == file:
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno for frame in reversed(frames) if Path(frame.filename) == file), None)
