"""The result of a sweep over one toggle: where higher values stop paying off, and what fits."""

from __future__ import annotations

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
    values = sorted({row.configuration[toggle] for row in rows}, key=lambda value: _order(toggle, value))
    speeds = {value: _best_fps(rows, toggle, value) for value in values}
    timed = {value: fps for value, fps in speeds.items() if fps is not None}
    fitting = [value for value in values if _fits(rows, toggle, value)]
    largest = fitting[-1] if fitting else None
    if not timed:
        reason = f"No value of {toggle} gave a valid row ({plural(len(rows), 'row')}: {_statuses(rows)})."
        return Summary(toggle=toggle, knee=None, largest_fitting=largest, reason=reason)
    best_fps = max(timed.values())
    best = next(value for value in timed if timed[value] == best_fps)
    found = next(value for value in timed if timed[value] >= (1 - WITHIN) * best_fps)
    speed = significant(timed[found])
    sentence = (
        f"{toggle} = {found} gives the best FPS, {speed}, and no smaller value is within {WITHIN:.0%} of it."
        if found == best
        else f"{toggle} = {found} is the smallest value within {WITHIN:.0%} of the best FPS: {speed} "
        f"against {significant(best_fps)} at {best}."
    )
    sentences = [
        sentence,
        f"{largest} is the largest that fits{_beyond(rows, toggle, values, largest)}.",
        *_gaps(rows, toggle, values, largest),
    ]
    return Summary(toggle=toggle, knee=found, largest_fitting=largest, reason=" ".join(sentences))


def _order(toggle: str, value: Value) -> tuple[float, str]:
    return magnitude(toggle, value), str(value)


def _best_fps(rows: list[Measurement], toggle: str, value: Value) -> float | None:
    """Items per second of the best reliable row with that value."""
    return max(
        (
            row.fps
            for row in rows
            if row.configuration[toggle] == value
            and row.fps
            and gate(row) is None
            and not (row.quality and row.quality.passed is False)
        ),
        default=None,
    )


def _fits(rows: list[Measurement], toggle: str, value: Value) -> bool:
    return any(row.status == "ok" and row.configuration[toggle] == value for row in rows)


def _statuses(rows: list[Measurement]) -> str:
    return ", ".join(sorted({row.status for row in rows})) or "none measured"


def _why(rows: list[Measurement], toggle: str, value: Value) -> str:
    return f"{value} ({_statuses([row for row in rows if row.configuration[toggle] == value])})"


def _beyond(rows: list[Measurement], toggle: str, values: list[Value], largest: Value | None) -> str:
    above = values[values.index(largest) + 1 :] if largest is not None else values
    return f"; above it failed: {', '.join(_why(rows, toggle, value) for value in above)}" if above else ""


def _gaps(rows: list[Measurement], toggle: str, values: list[Value], largest: Value | None) -> list[str]:
    """Smaller values that failed although a larger one ran, so that size was not the cause."""
    below = values[: values.index(largest)] if largest is not None else []
    failed = [value for value in below if not _fits(rows, toggle, value)]
    if not failed:
        return []
    return [f"Below it failed: {', '.join(_why(rows, toggle, value) for value in failed)}, although larger ones ran."]
