"""A row's status, and the sentences on rows whose status or flags need one."""

from __future__ import annotations

from collections import defaultdict

from gpubench.analysis.reasons import describe
from gpubench.analysis.table import Row
from gpubench.flags import Flag


def status(row: Row) -> str:
    """The status; `ok*` where a note says more."""
    return row.measurement.status + ("*" if row.measurement.flags and row.measurement.status == "ok" else "")


def notes(rows: list[Row]) -> list[str]:
    """A sentence for each row that is not `ok` or has a reason, and one for each kind of flag on rows that are."""
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
    return [*found, *map(_flags, flagged.values())]


def _flags(members: list[tuple[int, Flag]]) -> str:
    """`ok*: unsteady: 4.0 s (#2)`; where rows differ in the details only the kind, as `ok*: unsteady (#2, #5)`."""
    kinds = {flag for _, flag in members}
    text = kinds.pop() if len(kinds) == 1 else members[0][1].label
    return f"ok*: {text} ({', '.join(dict.fromkeys(f'#{number}' for number, _ in members))})"
