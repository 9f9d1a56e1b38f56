"""Rows that look worse than their baseline, measured again beside rows that do not, until it is decided."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from gpubench.matrix import Planned
from gpubench.results import store
from gpubench.results.schema import Confirmation, Measurement, Report
from gpubench.runner import rows
from gpubench.runner.interfaces import Listener, Measurer
from gpubench.runner.process import now
from gpubench.runner.schedule import Schedule

LOOKS_AFTER = (5, 10, 20)  # rounds after which it is looked whether all is decided; for the last time at the end
FIRST_LOOK = LOOKS_AFTER[0]


@dataclass
class Confirmer:
    """Adds rounds of the phase `confirm` to `report`.

    It is saved at `path` after each process, but not before the first look: fewer rounds would replace what the run
    itself had measured.
    """

    report: Report
    path: Path
    bench: Measurer
    listener: Listener
    is_open: Callable[[Report], bool]  # whether one of the suspects is still not decided
    time_limit_s: float
    _looked: bool = False

    def run(self, suspects: list[str], controls: list[str]) -> Report:
        """Measures suspects and controls in rounds of random order, reversed in every other one."""
        begun = time.monotonic()
        noted = Confirmation(at=now(), suspects=suspects, controls=controls)
        self.report = msgspec.structs.replace(self.report, confirmation=noted)
        schedule, index = Schedule(self.report.protocol.seed), 0
        self.listener.planned(FIRST_LOOK * len([*suspects, *controls]), 0)
        while index < FIRST_LOOK or time.monotonic() - begun < self.time_limit_s:
            if index in LOOKS_AFTER and not self.is_open(self.report):
                break
            index += 1
            for row_id in schedule.round(index, list(dict.fromkeys([*suspects, *controls]))):
                self._measure(row_id, index)
            if index == FIRST_LOOK:
                self._looked = True
                store.save(self.report, self.path)
        return self.report

    def _measure(self, row_id: str, index: int) -> None:
        row = next(one for one in self.report.measurements if one.id == row_id)
        if row.status != "ok":
            return
        position = sum(len(one.rounds) for one in self.report.measurements)
        planned = Planned(row.id, row.configuration, tuple(row.roles))
        self.listener.started(position + 1, planned, f"again, round {index}")
        result = self.bench.alone(row.id, row.configuration)
        added = rows.with_round(row, result, "confirm", index, position, self.report.protocol.machine_drift)
        self._put(rows.allowed(added, self.report.plan.allow))

    def _put(self, row: Measurement) -> None:
        measured = [row if one.id == row.id else one for one in self.report.measurements]
        self.report = msgspec.structs.replace(self.report, measurements=measured)
        if self._looked:
            store.save(self.report, self.path)
