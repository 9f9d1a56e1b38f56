"""Two sides against each other on one machine, in rounds that each hold a process of both, or one with both in it.

Both sides have a report of their own, of one session: rounds of the same index were measured together. What is decided
comes from `regression.comparison` on the two reports, as it would from the files later.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from gpubench.analysis.peak_memory import together_bytes
from gpubench.executor.local import LocalExecutor
from gpubench.executor.outcome import Outcome, now
from gpubench.regression.comparison import NamedReport, check
from gpubench.regression.verdicts import Check, Limits
from gpubench.report import store
from gpubench.report.model import Measurement, Report
from gpubench.search.space import Candidate
from gpubench.study import rows
from gpubench.study.interfaces import Listener
from gpubench.study.schedule import Schedule

SideName = Literal["a", "b"]
SIDES: tuple[SideName, SideName] = ("a", "b")
FEWEST_ROUNDS = 5  # whatever the time limit: fewer cannot tell an effect from chance


@dataclass
class Comparison:
    """One run of both sides. `reports` are what is on disk, but for the processes under way."""

    bench: LocalExecutor
    reports: dict[SideName, Report]
    folder: Path  # of a.json and b.json
    labels: Mapping[SideName, str]
    listener: Listener
    limits: Limits
    rounds: int  # after which it is decided for the first time
    time_limit_s: float  # of a row, for the second time
    _position: int = 0
    _count: int = 1  # of rows in the end: each look at the data is corrected for all of them
    _rows: dict[SideName, dict[str, Measurement]] = field(default_factory=lambda: {"a": {}, "b": {}})

    def run(self, planned: Sequence[Candidate]) -> Check:
        """Measures every row of `planned` on both sides; the verdict on b."""
        self.listener.planned(2 * len(planned) * (1 + self.rounds), 0)
        self._count = len(planned)
        for one in planned:
            self._measure(one)
        for side in SIDES:
            self.reports[side] = msgspec.structs.replace(self.reports[side], finished_at=now())
        self._save()
        return self.verdict()

    def verdict(self) -> Check:
        """What the two reports say now."""
        sources = [NamedReport(self.labels[side], self.reports[side]) for side in SIDES]
        return check(sources[1], sources[0], self.limits, family=self._count)

    def _measure(self, one: Candidate) -> None:
        """One row: each side alone (memory, compilation, outputs), then rounds until it is decided or time is up."""
        begun = time.monotonic()
        schedule = Schedule(self.reports["a"].protocol.seed)
        for name in schedule.shuffled(SIDES):
            side = side_of(name)
            self.listener.started(self._position + 1, one, f"side {side} alone")
            result = self.bench.alone(self._id(side, one), one.configuration)
            self._put(side, rows.first_row(one, result, self._position))
            self._position += 1
            self.listener.finished(self._rows[side][one.id])
        index = 0
        while self._is_open(one, index, time.monotonic() - begun):
            index += 1
            order = schedule.round(index, SIDES)
            self.listener.started(self._position + 1, one, f"both sides, round {index}")
            asked = [(self._id(side, one), one.configuration) for side in order]
            needs = together_bytes([self._rows[side][one.id] for side in SIDES], self.reports["a"].device.kind)
            for row_id, result in self.bench.together(asked, needs).items():
                self._add(row_id, one, result, index)

    def _is_open(self, one: Candidate, index: int, seconds: float) -> bool:
        """Whether another round is due. It is looked at twice, after `rounds` and at the end, and no oftener.

        Looking after every round until something is significant would find something in identical code.
        """
        if any(self._rows[side][one.id].status != "ok" for side in SIDES):
            return False
        if index < max(FEWEST_ROUNDS, self.rounds):
            return index < FEWEST_ROUNDS or seconds < self.time_limit_s
        if seconds >= self.time_limit_s:
            return False
        return index != self.rounds or self._time(one) == "inconclusive"

    def _time(self, one: Candidate) -> str | None:
        findings = [found for row in self.verdict().rows if row.id == one.id for found in row.findings]
        return next((found.verdict for found in findings if found.metric == "fps"), None)

    def _id(self, side: str, one: Candidate) -> str:
        return f"{side} {one.id}"

    def _add(self, row_id: str, one: Candidate, result: Outcome, index: int) -> None:
        side = side_of(row_id)
        self._put(side, rows.with_round(self._rows[side][one.id], result, "final", index, self._position))
        self._position += 1

    def _put(self, side: SideName, row: Measurement) -> None:
        self._rows[side][row.id] = row
        measured = list(self._rows[side].values())
        self.reports[side] = msgspec.structs.replace(self.reports[side], measurements=measured)
        self._save()

    def _save(self) -> None:
        for side in SIDES:
            store.save(self.reports[side], self.folder / f"{side}.json")


def side_of(row_id: str) -> SideName:
    """The side that a name, or the id of a row in the bench, begins with."""
    return "a" if row_id.startswith("a") else "b"
