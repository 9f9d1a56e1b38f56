"""Which rows of two reports match: those with the same changes to the baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gpubench.report.model import Measurement, Report, Value

Key = frozenset[tuple[str, Value | None]]


@dataclass(frozen=True)
class Matched:
    """The rows of a baseline and a current report."""

    both: list[tuple[Measurement, Measurement]]  # (baseline, current), in the baseline's order
    missing: list[Measurement]  # of the baseline
    fresh: list[Measurement]  # of the current report


def match(baseline: Report, current: Report) -> Matched:
    """Rows with the same changes to their report's baseline row. A/A controls do not count."""
    before, now = keyed(baseline), keyed(current)
    return Matched(
        both=[(row, now[key]) for key, row in before.items() if key in now],
        missing=[row for key, row in before.items() if key not in now],
        fresh=[row for key, row in now.items() if key not in before],
    )


def keyed(report: Report) -> dict[Key, Measurement]:
    """The rows by their changes; the first of several with the same changes."""
    base = settings(report)
    found: dict[Key, Measurement] = {}
    for row in report.measurements:
        if row.is_control:
            continue
        values = {**dict.fromkeys(base), **row.configuration}  # None: the row has not that toggle
        found.setdefault(frozenset((name, value) for name, value in values.items() if base.get(name) != value), row)
    return found


def settings(report: Report) -> Mapping[str, Value]:
    """The toggle values of the report's baseline row; empty where it has none."""
    return report.baseline.configuration if report.baseline else {}
