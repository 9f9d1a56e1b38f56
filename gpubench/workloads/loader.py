"""A workload from its reference, size and parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpubench.errors import GpubenchError
from gpubench.toggles import installed_toggles
from gpubench.toggles.own import check as check_own
from gpubench.workloads.arguments import Argument, bind
from gpubench.workloads.source import blaming, find
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
    if size not in (None, "default"):
        given["size"] = size
    workload, arguments = source.target, dict[str, Argument]()
    if isinstance(workload, Workload):
        if given:
            raise GpubenchError(
                f"{reference} is a Workload, not a function, and takes no {next(iter(given))!r}.",
                "Make it a function with that parameter, or leave it out.",
            )
    elif callable(workload):
        arguments = bind(workload, reference, given)
        with blaming(f"Building the workload {reference}", source.file):
            workload = workload(**arguments)
        if not isinstance(workload, Workload):
            raise GpubenchError(
                f"{reference} returned an object of type {type(workload).__name__}.",
                "It must return a gpubench Workload.",
            )
    else:
        raise GpubenchError(
            f"{reference} is of type {type(workload).__name__}.",
            "It must be a gpubench Workload or a function that returns one.",
        )
    check_own(workload.toggles, installed_toggles(), workload.name)
    return Loaded(
        workload=workload,
        reference=reference,
        size=str(arguments.pop("size", "default")),
        parameters=arguments,
        source_hash=source.source_hash,
        file=source.file,
    )
