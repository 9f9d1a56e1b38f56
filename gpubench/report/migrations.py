"""Reports of older schema versions as ones of today's. A damaged part stays as it is, for the validation to name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gpubench.errors import GpubenchError
from gpubench.flags import KINDS
from gpubench.report.model import SCHEMA_VERSION

NOT_A_REPORT = "Give a report that gpubench wrote with --output."
RENAMED_PHASES = {"race": "runoff", "duel": "final"}

RawReport = dict[str, Any]


def flag_object(flag: object) -> object:
    """A flag of version 1, the text `kind: detail` or `kind (allowed): detail`, as version 2 writes it."""
    if not isinstance(flag, str):
        return flag
    label, _, detail = flag.partition(":")
    name = label.removesuffix(" (allowed)")
    kind = KINDS.get(name)
    effect = "allowed" if name != label else kind.effect if kind else "note"
    return {"kind": name, "detail": detail.removeprefix(" "), "effect": effect}


def _to_version_2(document: RawReport) -> RawReport:
    """Version 1 called the runoff a race and the final a duel; its flags were texts."""
    protocol = document.get("protocol")
    if isinstance(protocol, dict) and "duel_rounds" in protocol:
        protocol["final_rounds"] = protocol.pop("duel_rounds")
    for row in _objects(document.get("measurements")):
        _with_flag_objects(row)
        for part in _objects(row.get("rounds")):
            _with_flag_objects(part)
            if isinstance(phase := part.get("phase"), str):
                part["phase"] = RENAMED_PHASES.get(phase, phase)
    return document


def _with_flag_objects(part: RawReport) -> None:
    if isinstance(flags := part.get("flags"), list):
        part["flags"] = [flag_object(flag) for flag in flags]


def _objects(value: object) -> list[RawReport]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


# From a schema version to the function that turns its document into the next version's.
MIGRATIONS: Mapping[int, Callable[[RawReport], RawReport]] = {1: _to_version_2}


def migrate(
    document: RawReport,
    version: int,
    name: str,
    migrations: Mapping[int, Callable[[RawReport], RawReport]] = MIGRATIONS,
    target: int = SCHEMA_VERSION,
) -> RawReport:
    """The report `document` of schema `version` as one of version `target`, one version at a time.

    Raises GpubenchError where no migration starts at a version on the way.
    """
    while version < target:
        if version not in migrations:
            oldest = min(migrations, default=target)
            raise GpubenchError(
                f"{name} has schema_version {version}; this gpubench reads {oldest} to {target}.", NOT_A_REPORT
            )
        document = migrations[version](document)
        version += 1
        document["schema_version"] = version
    return document
