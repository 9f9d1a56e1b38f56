"""A workload from its reference, size and parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpubench.errors import GpubenchError
from gpubench.workloads.arguments import Argument, bind
from gpubench.workloads.source import SourceFile, blaming, find
from gpubench.workloads.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A workload and how it was named; `load` with the same reference, size and parameters gives the same again."""

    workload: Workload
    reference: str
    size: str  # "default" where the workload has no sizes
    parameters: dict[str, Argument]  # without `size`, including defaults
    source_hash: str | None  # SHA-256 of a user's file; None for a bundled workload
    file: Path | None = None  # the user's file


def load(reference: str, size: str | None = None, parameters: Mapping[str, object] | None = None) -> Loaded:
    """The workload that `reference` names: one of `catalog.names()`, `FILE.py:NAME` or `package.module:NAME`.

    `size` None is the function's own default (`catalog.resolve_size` has the rule for `auto`). `parameters` are
    strings, converted by the function's annotations; those of an earlier `Loaded` can be passed as they are.
    Raises GpubenchError for arguments that do not fit, and for what the user's code raises, with its line.
    """
    source = find(reference)
    given = dict(parameters or {})
    if isinstance(source.target, Workload):
        return _constant(source, source.target, size, given)
    if not callable(source.target):
        raise GpubenchError(
            f"{reference} is of type {type(source.target).__name__}.",
            "It must be a gpubench Workload or a function that returns one.",
        )
    if size not in (None, "default"):
        given["size"] = size
    arguments = bind(source.target, reference, given)
    with blaming(f"Building the workload {reference}", source.file):
        workload = source.target(**arguments)
    if not isinstance(workload, Workload):
        raise GpubenchError(
            f"{reference} returned an object of type {type(workload).__name__}.", "It must return a gpubench Workload."
        )
    return Loaded(
        workload=workload,
        reference=reference,
        size=str(arguments.pop("size", "default")),
        parameters=arguments,
        source_hash=source.source_hash,
        file=source.file,
    )


def _constant(source: SourceFile, workload: Workload, size: str | None, given: Mapping[str, object]) -> Loaded:
    names = [*(["size"] if size not in (None, "default") else []), *given]
    if names:
        raise GpubenchError(
            f"{source.reference} is a Workload, not a function, and takes no {names[0]!r}.",
            "Make it a function with that parameter, or leave it out.",
        )
    return Loaded(
        workload=workload,
        reference=source.reference,
        size="default",
        parameters={},
        source_hash=source.source_hash,
        file=source.file,
    )
