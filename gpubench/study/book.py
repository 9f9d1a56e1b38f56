"""The report of a run under way: it alone holds the rows, and writes them to disk."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from gpubench.errors import GpubenchError
from gpubench.report import store
from gpubench.report.model import Measurement, Report
from gpubench.study import rows
from gpubench.study.listener import Listener


class Book:
    """A report that grows row by row. `report` is what `save` writes to `path`: empty at first, or one to continue.

    `listener` is told once where that cannot be written. With `strict`, rows whose flags speak against them fail.
    """

    def __init__(self, report: Report, path: Path, listener: Listener, *, strict: bool = False) -> None:
        self.report, self.path, self.listener, self.strict = report, path, listener, strict
        self.unsaved = ""  # why the newest report is not on disk
        earlier = [rows.allowed(row, report.plan.allow) for row in report.measurements]
        self.update(measurements=earlier)

    @property
    def rows(self) -> dict[str, Measurement]:
        """The rows by id, in the report's order."""
        return {row.id: row for row in self.report.measurements}

    @property
    def position(self) -> int:
        """How many processes have been measured: one for each round, and for each row that failed in its first."""
        return sum(
            len(row.rounds) or row.status not in ("ok", "skipped") for row in self.report.measurements
        )  # the control has no round at first, and is ok

    def update(self, **changes: Any) -> None:
        """Replaces fields of the report."""
        self.report = msgspec.structs.replace(self.report, **changes)

    def plan(self, ids: Iterable[str]) -> None:
        """Notes which rows are to be measured, each once; the report has its rows in this order."""
        self.update(plan=msgspec.structs.replace(self.report.plan, configurations=list(dict.fromkeys(ids))))

    def put(self, *new: Measurement) -> None:
        """Adds rows, or replaces those of the same ids."""
        changed = {}
        for row in new:
            row = rows.allowed(row, self.report.plan.allow)
            changed[row.id] = rows.strict(row) if self.strict else row
        place = {row_id: index for index, row_id in enumerate(self.report.plan.configurations)}
        ordered = sorted({**self.rows, **changed}.values(), key=lambda row: place.get(row.id, len(place)))
        self.update(measurements=ordered)

    def remove(self, row_id: str) -> None:
        """Takes a row out of the report and its plan."""
        self.update(measurements=[row for row in self.report.measurements if row.id != row_id])
        self.plan(planned for planned in self.report.plan.configurations if planned != row_id)

    def note(self, text: str) -> None:
        """Adds a sentence to the report."""
        self.update(notes=[*self.report.notes, text])

    def save(self, *, first: bool = False) -> None:
        """Writes the report. After the first time a full disk does not end the run, which goes on in memory."""
        try:
            store.save(self.report, self.path)
        except GpubenchError as error:
            if first:
                raise
            if not self.unsaved:
                self.listener.note(f"Cannot save the report yet; the run continues: {error.message}")
            self.unsaved = error.message
        else:
            self.unsaved = ""
