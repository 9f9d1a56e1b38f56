"""One row as short texts for people; the terminal table and Markdown both show these."""

from __future__ import annotations

from collections import defaultdict

from gpubench.analysis.eligibility import MIN_ROUNDS
from gpubench.analysis.reasons import describe, times
from gpubench.analysis.table import Line, Row
from gpubench.flags import Flag
from gpubench.stats.estimate import Estimate
from gpubench.text import printable
from gpubench.units import format_bytes, significant

MISSING = "-"  # was not measured; never 0
HEADINGS = {
    "number": "#",
    "configuration": "configuration",
    "fps": "FPS",
    "latency": "latency ms",
    "percentiles": "p5-p95 ms",
    "speedup": "speedup",
    "interval": "95 % (rounds)",
    "memory": "memory",
    "compile": "compile s",
    "error": "rel. error",
    "status": "status",
}
FIGURES = frozenset(HEADINGS) - {"configuration", "status"}  # columns aligned to the right


def cells(line: Line) -> dict[str, str]:
    """The texts of one row by the keys of HEADINGS, safe to print but not escaped for any markup."""
    row, measurement = line.row, line.row.measurement
    latency, quality = measurement.latency_s, measurement.quality
    percentiles = f"{_milliseconds(latency.p5)}-{_milliseconds(latency.p95)}" if latency else MISSING
    return {
        "number": str(row.number),
        "configuration": printable(line.label),
        "fps": _number(measurement.fps),
        "latency": _milliseconds(latency.median) if latency else MISSING,
        "percentiles": percentiles,
        "speedup": _speedup(row.speedup),
        "interval": _interval(row.speedup),
        "memory": format_bytes(row.memory_bytes) if row.memory_bytes is not None else MISSING,
        "compile": _number(measurement.compile_time_s),
        "error": _error(quality.relative_error if quality else None),
        "status": status(row),
    }


def _speedup(found: Estimate | None) -> str:
    """`2.61x`; `~2.61x` where it rests on too few processes to be more than a first impression."""
    if found is None:
        return MISSING
    return times(found.ratio) if found.rounds >= MIN_ROUNDS else f"~{times(found.ratio)}"


def _interval(found: Estimate | None) -> str:
    """`2.56-2.67 (6)`: the 95 % interval, and the rounds of fresh processes that it rests on."""
    if found is None or found.rounds < MIN_ROUNDS:
        return MISSING
    return f"{significant(found.low)}-{significant(found.high)} ({found.rounds})"


def status(row: Row) -> str:
    """The status, with a mark where the row's notes say more."""
    return row.measurement.status + ("*" if row.measurement.flags and row.measurement.status == "ok" else "")


def notes(rows: list[Row]) -> list[str]:
    """A sentence for each row that is not `ok`, with its reason, and one for each kind of flag on rows that are."""
    found, flagged = [], defaultdict(list)
    for row in rows:
        measurement, reason = row.measurement, row.measurement.reason.rstrip(".")
        if measurement.status == "skipped":
            # It never ran and stands in no table, so it is named by what it would have changed.
            changes = describe(row.changed)
            name = "" if reason.startswith(changes) else f" {changes}"
            found.append(f"skipped{name}: {reason or 'no reason recorded'}")
        elif measurement.status != "ok":
            found.append(f"#{row.number} {measurement.status}: {reason or 'no reason recorded'}")
        elif reason:
            found.append(f"#{row.number}: {reason}")
        if measurement.status == "ok":
            for flag in measurement.flags:
                flagged[flag.label].append((row.number, flag))
    return [printable(text) for text in (*found, *map(_flags, flagged.values()))]


def _flags(members: list[tuple[int, Flag]]) -> str:
    """`ok*: unsteady: 4.0 s (#2)`; where rows differ in the details only the kind, as `ok*: unsteady (#2, #5)`."""
    kinds = {flag for _, flag in members}
    text = kinds.pop() if len(kinds) == 1 else members[0][1].label
    return f"ok*: {text} ({', '.join(dict.fromkeys(f'#{number}' for number, _ in members))})"


def _number(value: float | None) -> str:
    return MISSING if value is None else significant(value)


def _milliseconds(seconds: float) -> str:
    return significant(1e3 * seconds, 4)


def _error(value: float | None) -> str:
    if value is None:
        return MISSING
    return "0" if value == 0 else f"{value:.1e}"
