"""The two sides of an A/B comparison: another interpreter, another workload, or another revision of one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpubench.errors import GpubenchError
from gpubench.text import printable
from gpubench.worker.messages import Module

FORMS = (
    "Give a Python interpreter, FILE.py:NAME, or a git revision of WORKLOAD's file ('.' is the file as it is); "
    "python: or git: before it says which."
)


@dataclass(frozen=True)
class Side:
    """What one side measures."""

    name: Literal["a", "b"]
    text: str  # as it was named
    kind: Literal["interpreter", "workload", "revision", "as it is"]
    reference: str  # of the workload
    python: str = sys.executable
    commit: str | None = None
    repository: Path | None = None  # of a revision: where its working tree is
    root: Path | None = None  # and where its own files are

    @property
    def label(self) -> str:
        """The side as people read it: `b: HEAD (1a2b3c4d)`."""
        commit = f" ({self.commit[:8]})" if self.commit else ""
        return printable(f"{self.name}: {self.text}{commit}")


def resolve(name: Literal["a", "b"], text: str, workload: str, scratch: Path) -> Side:
    """The side that `text` names; a revision's files go to a folder below `scratch`.

    Raises GpubenchError where it is no interpreter, workload or revision, or does not exist.
    """
    kind, _, rest = text.partition(":")
    if kind == "python":
        if not (found := _executable(rest)):
            raise GpubenchError(f"--{name} {printable(rest)!r} is not an executable program.", FORMS)
        return Side(name, rest, "interpreter", workload, python=found)
    if kind == "git":
        return _revision(name, rest, workload, scratch)
    if text == ".":
        return Side(name, text, "as it is", workload)
    if _is_reference(text):
        return Side(name, text, "workload", text)
    if found := _executable(text):
        return Side(name, text, "interpreter", workload, python=found)
    return _revision(name, text, workload, scratch)


def _is_reference(text: str) -> bool:
    place, colon, target = text.rpartition(":")
    return bool(colon and target.isidentifier() and (place.endswith(".py") or "." in place or "/" in place))


def _executable(text: str) -> str | None:
    """The absolute path of the program `text`, or None; links are not followed, since a venv's python is a link."""
    path = Path(text).expanduser()
    if path.is_file() and os.access(path, os.X_OK):
        return str(path.absolute())
    return shutil.which(text) if Path(text).name.startswith("python") else None


def _revision(name: Literal["a", "b"], text: str, workload: str, scratch: Path) -> Side:
    shown = printable(text)
    place, _, target = workload.rpartition(":")
    if not place.endswith(".py"):
        raise GpubenchError(
            f"--{name} {shown!r} is neither an interpreter nor FILE.py:NAME; revisions need WORKLOAD as FILE.py:NAME.",
            FORMS,
        )
    file = Path(place).resolve()
    if not file.is_file():
        raise GpubenchError(f"The workload file {printable(place)!r} does not exist.", FORMS)
    top = Path(_git(file.parent, "rev-parse", "--show-toplevel", what=f"{printable(place)} is in no git repository"))
    question = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{text}^{{commit}}")
    commit = _git(top, *question, what=f"--{name} {shown!r} is not an interpreter, FILE.py:NAME or git revision here")
    inside = file.relative_to(top)
    folder = scratch / f"revision-{name}"
    _export(top, commit, folder)
    if not (folder / inside).is_file():
        raise GpubenchError(f"Revision {shown!r} has no file {printable(str(inside))}.", "Name one that has it.")
    reference = f"{folder / inside}:{target}"
    return Side(name, text, "revision", reference, commit=commit, repository=top, root=folder.resolve())


def _git(folder: Path, *arguments: str, what: str) -> str:
    """What git prints; GpubenchError beginning with `what` where it refuses or is not there."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise GpubenchError("git cannot be run, which comparing revisions needs.", "Install git.") from error
    if done.returncode:
        told = printable(done.stderr.strip())
        raise GpubenchError(f"{what}{f' ({told})' if told else ''}.", FORMS)
    return done.stdout.strip()


def _export(top: Path, commit: str, folder: Path) -> None:
    """The whole tree of `commit` in `folder`; the repository itself is left as it is."""
    with tempfile.TemporaryFile() as archive:
        command = ["git", "-C", str(top), "archive", "--format=tar", commit]
        done = subprocess.run(command, stdout=archive, stderr=subprocess.PIPE, check=False)
        if done.returncode:
            reason = printable(done.stderr[:2000].decode(errors="replace").strip())
            raise GpubenchError(
                f"git cannot export {commit[:8]}: {reason}.",
                "Fetch the whole history: it may be a shallow or partial clone.",
            )
        archive.seek(0)
        try:
            with tarfile.open(fileobj=archive) as tree:
                tree.extractall(folder, filter=_inside)
        except (tarfile.TarError, OSError) as error:
            raise GpubenchError(
                f"The files of {commit[:8]} cannot be written below {printable(str(folder.parent))}: {error}.",
                "Free some space there, or set TMPDIR to another folder.",
            ) from error


def _inside(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    """`member` as it may be extracted; None for a link that leads out of the tree, and for a device: left out."""
    try:
        return tarfile.data_filter(member, folder)
    except tarfile.FilterError:
        return None


def why_apart(first: Side, second: Side, modules: tuple[dict[str, Module], dict[str, Module]]) -> str:
    """The sentence why the two cannot live in one process; empty where they can.

    One process has one module of a name: what both import beside their files must be the same there, or one of them
    would run the other's code.
    """
    if first.python != second.python:
        return "The sides use different interpreters, so they run in separate processes."
    hashes = [{name: module.hash for name, module in found.items()} for found in modules]
    unlike = sorted(name for name in {**hashes[0], **hashes[1]} if hashes[0].get(name) != hashes[1].get(name))
    if unlike:
        return f"The sides import different code as {', '.join(unlike[:3])}, so they run in separate processes."
    return ""


def refuse_foreign_code(side: Side, modules: dict[str, Module]) -> None:
    """Raises GpubenchError where a revision imports code from the working tree: it would not be what is measured."""
    if side.repository is None or side.root is None:
        return
    for name, module in modules.items():
        file = Path(module.file).resolve()
        if file.is_relative_to(side.repository) and not file.is_relative_to(side.root):
            raise GpubenchError(
                f"Revision {printable(side.text)!r} imports {name} from {printable(module.file)}, the working tree, "
                "so its own code would not be measured.",
                "Install each revision into an environment of its own and compare the two interpreters.",
            )
