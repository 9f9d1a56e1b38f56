"""Resuming a report: only one of the same device, workload, software and protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from gpubench.errors import GpubenchError
from gpubench.report.model import Report

# Facts of the moment, not of what was measured.
VOLATILE = {"unavailable", "variables"}


def differences(earlier: Report, current: Report) -> list[str]:
    """What is not alike, as `device.name: A against B`, the reports' order being earlier, current."""
    found: list[str] = []
    for part in ("tool", "device", "environment", "workload", "protocol"):
        one, other = msgspec.to_builtins(getattr(earlier, part)), msgspec.to_builtins(getattr(current, part))
        found += _differences(part, one, other)
    for name in ("command", "strategy", "baseline", "matrix"):
        found += _differences(f"plan.{name}", getattr(earlier.plan, name), getattr(current.plan, name))
    return found


def _differences(name: str, one: Any, other: Any) -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            text
            for key in dict.fromkeys([*one, *other])
            if key not in VOLATILE
            for text in _differences(f"{name}.{key}", one.get(key), other.get(key))
        ]
    return [] if one == other else [f"{name}: {one!r} against {other!r}"]


def refuse_unlike(earlier: Report, current: Report, path: Path) -> None:
    """Raises GpubenchError naming what differs where `current` cannot resume `earlier`."""
    found = differences(earlier, current)
    if found:
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        raise GpubenchError(
            f"Cannot resume {path}: it differs in {'; '.join(found[:3])}{more}.",
            "Leave --resume out to begin a new report.",
        )
