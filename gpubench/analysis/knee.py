"""The result of a sweep over one toggle: where higher values stop paying off, and what fits."""

from __future__ import annotations

from collections import defaultdict

from gpubench.analysis.eligibility import gate
from gpubench.report.model import Measurement, Report, Summary, Value
from gpubench.text import plural
from gpubench.toggles.traits import magnitude
from gpubench.units import significant

WITHIN = 0.05  # of the best FPS: the sweep's own definition of its knee


def knee(report: Report, toggle: str) -> Summary:
    """The smallest value of `toggle` within 5 % of the best FPS, and the largest that fits; None where none is valid.

    A value that was measured in several rows (tile overlaps, for example) counts by the best of them.
    `Toggle.magnitude` says which value is larger: the whole picture is larger than any tile.
    """
    rows = [row for row in report.measurements if toggle in row.configuration and row.status != "skipped"]
    members: dict[Value, list[Measurement]] = defaultdict(list)
    speeds: dict[Value, list[float]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: _order(toggle, row.configuration[toggle])):
        value = row.configuration[toggle]
        members[value].append(row)
        if row.fps and gate(row) is None and not (row.quality and row.quality.passed is False):
            speeds[value].append(row.fps)
    values, timed = list(members), {value: max(fps) for value, fps in speeds.items()}
    fitting = [value for value in values if any(row.status == "ok" for row in members[value])]
    largest = fitting[-1] if fitting else None
    if not timed:
        reason = f"No value of {toggle} gave a valid row ({plural(len(rows), 'row')}: {_statuses(rows)})."
        return Summary(toggle=toggle, knee=None, largest_fitting=largest, reason=reason)
    best = max(timed, key=lambda value: timed[value])
    chosen = next(value for value in timed if timed[value] >= (1 - WITHIN) * timed[best])
    speed = significant(timed[chosen])
    reason = (
        f"{toggle} = {chosen} gives the best FPS, {speed}, and no smaller value is within {WITHIN:.0%} of it."
        if chosen == best
        else f"{toggle} = {chosen} is the smallest value within {WITHIN:.0%} of the best FPS: {speed} "
        f"against {significant(timed[best])} at {best}."
    )
    reason += f" {largest} is the largest that fits"
    failed = {value: f"{value} ({_statuses(members[value])})" for value in values if value not in fitting}
    place = values.index(fitting[-1])
    above, below = ([failed[value] for value in part if value in failed] for part in (values[place:], values[:place]))
    reason += f"; above it failed: {', '.join(above)}." if above else "."
    if below:  # a larger one ran, so that size was not the cause
        reason += f" Below it failed: {', '.join(below)}, although larger ones ran."
    return Summary(toggle=toggle, knee=chosen, largest_fitting=largest, reason=reason)


def _order(toggle: str, value: Value) -> tuple[float, str]:
    return magnitude(toggle, value), str(value)


def _statuses(rows: list[Measurement]) -> str:
    return ", ".join(sorted({row.status for row in rows})) or "none measured"
