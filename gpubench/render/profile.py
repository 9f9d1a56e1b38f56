"""A recommendation as a TOML profile: what to switch on, where it was found, and how sure that is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from gpubench.report.model import Recommendation, Report

Scalar = str | int | float | bool | None
BARE = re.compile(r"[A-Za-z0-9_-]+")


def profile(report: Report, recommendation: Recommendation, source: str, created_at: str) -> str:
    """The profile's text. `source` names the report; `created_at` is UTC, ISO 8601. A figure not known is left out."""
    tables: dict[str, Mapping[str, Scalar]] = {
        "": {"created_at": created_at, "source": source, "measured_at": report.created_at},
        "device": _fields(report.device, "kind", "name", "uuid"),
        "environment": _fields(report.environment, "torch", "cuda"),
        "workload": _fields(report.workload, "reference", "name", "mode", "size", "batch_size"),
        "recommendation": _fields(
            recommendation, "id", "objective", "speedup", "speedup_low", "speedup_high", "versus"
        ),
        "configuration": recommendation.configuration,
    }
    return "\n".join(_table(name, values) for name, values in tables.items())


def _fields(part: object, *names: str) -> dict[str, Scalar]:
    return {name: getattr(part, name) for name in names}


def _table(name: str, values: Mapping[str, Scalar]) -> str:
    header = [f"[{name}]"] if name else []
    known = {key if BARE.fullmatch(key) else toml(key): value for key, value in values.items() if value is not None}
    return "\n".join([*header, *(f"{key} = {toml(value)}" for key, value in known.items())]) + "\n"


def toml(value: str | int | float | bool) -> str:
    """One scalar as TOML 1.0, which is JSON but for DEL; a lone surrogate, which neither can hold, is replaced."""
    # The standard library reads TOML but does not write it, and scalars in flat tables need no library.
    if isinstance(value, str):
        value = re.sub(r"[\ud800-\udfff]", "\ufffd", value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
