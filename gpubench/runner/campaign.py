"""A whole run: which configuration is measured when, saved after each one."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol as Interface

import msgspec

from gpubench.analysis.memory import peak_bytes
from gpubench.analysis.recommend import contenders, recommend
from gpubench.errors import GpubenchError
from gpubench.matrix import Builder, Matrix, Planned, rungs
from gpubench.results import store
from gpubench.results.schema import Measurement, Objective, Report, Summary, Value
from gpubench.runner import rows
from gpubench.runner.laboratory import Laboratory
from gpubench.runner.process import ProcessResult, measure, now

LEADERS = 2  # fastest configurations that meet the baseline in the confirming rounds, beside the simplest one
MEASURING = ("build", "apply", "first step", "warm-up", "samples")
FEWEST_ROUNDS = 3  # the fewest processes whose spread says anything (two degrees of freedom)
CONFIRM_S = 60.0  # seconds after which no further confirming round begins: a run on a CPU is to end within minutes


class Listener(Interface):
    """Is told how the run goes; a progress bar, plain lines, or nothing."""

    def planned(self, plain: int, compiled: int) -> None:
        """So many more processes are due, as far as is known now, without and with compilation."""

    def started(self, number: int, planned: Planned, note: str) -> None:
        """Process `number` begins."""

    def phase(self, name: str) -> None:
        """What the worker does now."""

    def finished(self, row: Measurement) -> None:
        """A configuration has its row."""

    def note(self, text: str) -> None:
        """Something the user should know."""


@dataclass
class Campaign:
    """One run's state. `report` is what is on disk, but for the configuration under way."""

    laboratory: Laboratory
    builder: Builder
    matrix: Matrix
    report: Report
    path: Path
    listener: Listener
    objective: Objective = "fps"
    max_memory_bytes: int | None = None
    confirm_rounds: int = 5
    _rows: dict[str, Measurement] = field(default_factory=dict)
    unsaved: str = ""  # why the newest report is not on disk
    _position: int = 0
    _measuring: float = 0.0  # seconds of this session's processes in build, apply, first step, warm-up and samples

    def __post_init__(self) -> None:
        self._rows = {row.id: row for row in self.report.measurements}
        self._position = sum(len(row.rounds) for row in self._rows.values())

    # ----- the two kinds of run

    def compare(self) -> Report:
        """Baseline, each technique alone, the ladder, the best combination; then the leaders on fresh data."""
        self._save(first=True)
        todo = [self.matrix.baseline, *self.matrix.planned]
        ladder = self.matrix.strategy == "ladder"
        self._expect(todo, len(self.matrix.techniques) if ladder else 0)
        self.laboratory.start_servers(row.configuration for row in todo if not row.skip)
        self._explore([self.matrix.baseline])
        baseline = self._rows[self.matrix.baseline.id]
        if baseline.status != "ok":
            self.listener.note(f"The baseline is {baseline.status}: what runs is still ranked, without a speed-up.")
        self._explore(self.matrix.planned)
        if ladder:
            self._climb()
        self._confirm()
        return self._conclude()

    def sweep(self, conclude: Callable[[Report], Summary]) -> Report:
        """Every value of one toggle, in the order given; a value that does not fit does not end it."""
        self._save(first=True)
        todo = [self.matrix.baseline, *self.matrix.planned]
        self._expect(todo, 0)
        self.laboratory.start_servers(row.configuration for row in todo if not row.skip)
        self._explore(todo)
        self.report = msgspec.structs.replace(self.report, sweep=conclude(self.report))
        return self._conclude()

    # ----- exploring

    def _explore(self, planned: Iterable[Planned]) -> None:
        for one in planned:
            known = self._rows.get(one.id)
            if known is not None:
                roles = [*known.roles, *(role for role in one.roles if role not in known.roles)]
                self._put(msgspec.structs.replace(known, roles=roles))
            elif one.skip:
                self._put(rows.skipped(one))
                self.listener.finished(self._rows[one.id])
            else:
                result = self._measure(one, "")
                if result.status == "ok" and result.prepared and result.prepared.steady is False:
                    again = self._measure(one, "again, it had not settled")
                    result = replace(again, flags=(*again.flags, "remeasured: a first process did not settle"))
                self._put(rows.first_row(one, result, self._position))
                self._position += 1
                self.listener.finished(self._rows[one.id])

    def _measure(self, one: Planned, note: str) -> ProcessResult:
        self.listener.started(self._position + 1, one, note)
        result = measure(self.laboratory, one.id, one.configuration, self.builder.defaults, self.listener.phase)
        self._measuring += sum(result.phases_s.get(part, 0.0) for part in MEASURING)
        return result

    def _climb(self) -> None:
        """The ladder, each technique with the value that did best alone; then the combination of what helped."""
        chosen = {}
        for technique in self.matrix.techniques:
            value = self._best_alone(technique.toggle)
            if value is not None:
                chosen[technique.toggle] = value
        ladder = rungs(self.builder, self.matrix.techniques, chosen)
        self._expect(ladder, 1)
        self._explore(ladder)
        kept = self._worth_keeping(ladder, chosen)
        candidate = self.builder.plan(kept)
        if kept and candidate.id not in self._rows:
            self._expect([candidate], 0)
            self._explore([candidate])

    def _best_alone(self, toggle: str) -> Value | None:
        """The value of `toggle` that was best by itself among the valid rows; None where none is valid."""
        alone = [
            row
            for row in self._rows.values()
            if row.status == "ok" and any(role.kind == "alone" and role.toggle == toggle for role in row.roles)
        ]
        best = min(alone, key=self._cost, default=None)
        return best.configuration[toggle] if best else None

    def _worth_keeping(self, ladder: Sequence[Planned], chosen: dict[str, Value]) -> dict[str, Value]:
        """The techniques whose rung was an improvement over the rung below it."""
        kept: dict[str, Value] = {}
        below = self._rows[self.matrix.baseline.id]
        for rung in ladder:
            row = self._rows[rung.id]
            toggle = next((role.toggle for role in rung.roles if role.kind == "ladder"), None)
            if row.status != "ok" or toggle is None:
                continue
            if self._cost(row) < self._cost(below):
                kept[toggle] = chosen[toggle]
            below = row
        return kept

    def _cost(self, row: Measurement) -> float:
        """What the objective wants small: seconds per item, seconds per step, or bytes."""
        if row.status != "ok" or row.latency_s is None or row.items_per_step is None:
            return float("inf")
        if self.objective == "latency":
            return row.latency_s.median
        if self.objective == "memory":
            used = peak_bytes(row, self.report.device.kind)
            return float("inf") if used is None else float(used)
        return row.latency_s.median / row.items_per_step

    # ----- confirming on fresh data

    def _leaders(self) -> list[str]:
        """The rows that may be the best, as far as one process each can tell: the first ones, and the simplest."""
        best_first = contenders(self.report, self.objective, self.max_memory_bytes)
        ids = [row_id for row_id in best_first if row_id != self.matrix.baseline.id]
        simplest = min(ids, key=self._changes, default=None)
        return list(dict.fromkeys([*ids[:LEADERS], *([simplest] if simplest else [])]))

    def _changes(self, row_id: str) -> int:
        """How many toggles the row changes from the baseline."""
        base = self.matrix.baseline.configuration
        return sum(value != base.get(name) for name, value in self._rows[row_id].configuration.items())

    def _confirm(self) -> None:
        """Baseline and leaders in interleaved rounds over fresh processes, in random order, reversed in every other."""
        ids = [self.matrix.baseline.id, *self._leaders()]
        if len(ids) < 2:
            return
        order = random.Random(self.report.protocol.seed)
        sequence: list[str] = []
        begun = time.monotonic()
        for index in range(1, self.confirm_rounds + 1):
            if index > FEWEST_ROUNDS and time.monotonic() - begun > CONFIRM_S:
                self.listener.note(f"Confirmed in {index - 1} of {self.confirm_rounds} rounds, which took long enough.")
                break
            if index % 2:
                sequence = order.sample(ids, len(ids))
            else:
                sequence = sequence[::-1]
            for row_id in sequence:
                row = self._rows[row_id]
                if row.status != "ok" or any(one.phase == "confirm" and one.index == index for one in row.rounds):
                    continue
                planned = Planned(row.id, row.configuration, tuple(row.roles))
                result = self._measure(planned, f"round {index} of {self.confirm_rounds}")
                self._put(rows.with_round(self._rows[row_id], result, index, self._position))
                self._position += 1

    # ----- keeping the report

    def _expect(self, planned: Sequence[Planned], rungs_to_come: int) -> None:
        """Tells how much is due, and notes the configurations in the report's plan."""
        waiting = [one for one in planned if not one.skip and one.id not in self._rows]
        compiled = sum(is_compiled(one) for one in waiting)
        done = sum(one.phase == "confirm" for row in self._rows.values() for one in row.rounds)
        rounds = max(0, self.confirm_rounds * (1 + LEADERS) - done)
        self.listener.planned(len(waiting) - compiled + rungs_to_come + rounds, compiled + (rungs_to_come > 0))
        ids = dict.fromkeys([*self.report.plan.configurations, *(one.id for one in planned)])
        plan = msgspec.structs.replace(self.report.plan, configurations=list(ids))
        self.report = msgspec.structs.replace(self.report, plan=plan)

    def _put(self, row: Measurement) -> None:
        self._rows[row.id] = row
        self.report = msgspec.structs.replace(self.report, measurements=list(self._rows.values()))
        self._save()

    def _save(self, *, first: bool = False) -> None:
        """Writes the report; after the first time, a full disk does not end the run, which goes on in memory."""
        try:
            store.save(self.report, self.path)
        except GpubenchError as error:
            if first:
                raise
            if not self.unsaved:
                self.listener.note(f"The report cannot be saved for now, the run goes on: {error.message}")
            self.unsaved = error.message
        else:
            self.unsaved = ""

    def _conclude(self) -> Report:
        self.report = msgspec.structs.replace(
            self.report,
            finished_at=now(),
            notes=list(dict.fromkeys([*self.report.notes, *self.laboratory.notes, *self._warnings()])),
            harness=self._harness(),
        )
        advice = recommend(self.report, self.objective, self.max_memory_bytes)
        self.report = msgspec.structs.replace(self.report, recommendation=advice.recommendation)
        if advice.recommendation is not None:
            self._mark_recommended(advice.recommendation.id)
        else:
            self.report = msgspec.structs.replace(self.report, notes=[*self.report.notes, *advice.reasons])
        self._save()
        return self.report

    def _warnings(self) -> list[str]:
        busy = [row.id for row in self._rows.values() if any(flag.startswith("busy_machine") for flag in row.flags)]
        if not busy:
            return []
        many = f"{len(busy)} of {len(self._rows)} rows were"
        return [f"{many} timed while other processes kept the machine busy: the figures may be far off. Run it again."]

    def _harness(self) -> dict[str, float]:
        """Where the run's seconds went: `measuring` is the rows' own work, the rest of `total` the tool's."""
        spent = dict(self.laboratory.spent.parts)
        # What inductor asks its compiler once would otherwise be a part of the first row's compilation.
        measuring = spent.get("toolchain", 0.0) + self._measuring
        spent |= {"total": time.monotonic() - self.laboratory.since, "measuring": measuring}
        return {name: round(seconds, 3) for name, seconds in spent.items()}

    def _mark_recommended(self, row_id: str) -> None:
        marked = []
        for row in self.report.measurements:
            roles = [role for role in row.roles if role != rows.RECOMMENDED]  # of a run that this one goes on with
            roles += [rows.RECOMMENDED] if row.id == row_id else []
            marked.append(msgspec.structs.replace(row, roles=roles))
        self.report = msgspec.structs.replace(self.report, measurements=marked)


def is_compiled(planned: Planned) -> bool:
    """Whether measuring it begins with a compilation."""
    return planned.configuration.get("compile", "off") != "off"
