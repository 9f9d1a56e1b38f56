"""A recommendation as a TOML profile: what to switch on, where it was found, and how sure that is."""

from __future__ import annotations

import re
from collections.abc import Mapping

from gpubench.report.model import Recommendation, Report

Scalar = str | int | float | bool | None
BARE = re.compile(r"[A-Za-z0-9_-]+")
SHORT = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def profile(report: Report, recommendation: Recommendation, source: str, created_at: str) -> str:
    """The profile's text. `source` names the report; `created_at` is UTC, ISO 8601. A figure not known is left out."""
    workload = report.workload
    tables: dict[str, Mapping[str, Scalar]] = {
        "": {"created_at": created_at, "source": source, "measured_at": report.created_at},
        "device": {"kind": report.device.kind, "name": report.device.name, "uuid": report.device.uuid},
        "environment": {"torch": report.environment.torch, "cuda": report.environment.cuda},
        "workload": {
            "reference": workload.reference,
            "name": workload.name,
            "mode": workload.mode,
            "size": workload.size,
            "batch_size": workload.batch_size,
        },
        "recommendation": {
            "id": recommendation.id,
            "objective": recommendation.objective,
            "speedup": recommendation.speedup,
            "speedup_low": recommendation.speedup_low,
            "speedup_high": recommendation.speedup_high,
            "versus": recommendation.versus,
        },
        "configuration": recommendation.configuration,
    }
    return "\n".join(_table(name, values) for name, values in tables.items())


def _table(name: str, values: Mapping[str, Scalar]) -> str:
    header = [f"[{name}]"] if name else []
    entries = [f"{_key(key)} = {toml(value)}" for key, value in values.items() if value is not None]
    return "\n".join([*header, *entries]) + "\n"


def _key(key: str) -> str:
    return key if BARE.fullmatch(key) else toml(key)


def toml(value: str | int | float | bool) -> str:
    """One scalar as TOML 1.0: a basic string in which every control character is escaped, a number or a boolean."""
    # The standard library reads TOML but does not write it, and scalars in flat tables need no library.
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    return '"' + "".join(SHORT.get(character) or _character(character) for character in value) + '"'


def _character(character: str) -> str:
    code = ord(character)
    if code < 0x20 or code == 0x7F:
        return f"\\u{code:04x}"
    # A lone surrogate is no Unicode text: neither UTF-8 nor TOML can hold it.
    return "\ufffd" if 0xD800 <= code <= 0xDFFF else character
