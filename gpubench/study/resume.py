"""Which report a run may continue: only one of the same device, workload, software and protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from gpubench.errors import GpubenchError
from gpubench.report.model import Report

# Facts of the moment, not of what was measured.
VOLATILE = {"unavailable", "variables"}


def differences(earlier: Report, current: Report) -> list[str]:
    """What is not alike, as `device.name: 'A' in the report, 'B' now`."""
    texts: list[str] = []
    for part in ("tool", "device", "environment", "workload", "protocol"):
        before, now = msgspec.to_builtins(getattr(earlier, part)), msgspec.to_builtins(getattr(current, part))
        texts += _differences(part, before, now)
    for name in ("command", "strategy", "baseline", "matrix"):
        texts += _differences(f"plan.{name}", getattr(earlier.plan, name), getattr(current.plan, name))
    return texts


def _differences(name: str, before: Any, now: Any) -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            text
            for key in dict.fromkeys([*before, *now])
            if key not in VOLATILE
            for text in _differences(f"{name}.{key}", before.get(key), now.get(key))
        ]
    return [] if before == now else [f"{name}: {before!r} in the report, {now!r} now"]


def refuse_unlike(earlier: Report, current: Report, path: Path) -> None:
    """Raises GpubenchError naming what differs where `current` may not continue `earlier`."""
    texts = differences(earlier, current)
    if texts:
        more = f" (and {len(texts) - 3} more)" if len(texts) > 3 else ""
        raise GpubenchError(
            f"Cannot resume {path}: it differs in {'; '.join(texts[:3])}{more}.",
            "Leave --resume out to begin a new report.",
        )
