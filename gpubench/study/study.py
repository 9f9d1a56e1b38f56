"""A whole run: what is explored, who races and who finals, saved after every process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from gpubench.analysis.eligibility import find
from gpubench.analysis.noisy import rival, with_noise_flags
from gpubench.analysis.peak_memory import peak_bytes, together_bytes
from gpubench.analysis.recommendation import contenders, recommend
from gpubench.errors import GpubenchError
from gpubench.executor.outcome import Outcome, now
from gpubench.flags import CONTAMINATED, REMEASURED
from gpubench.report import store
from gpubench.report.model import Measurement, Objective, Report, Summary, Value
from gpubench.search.space import Builder, Candidate, Matrix, rungs
from gpubench.stats.processes import Phase, is_disturbed
from gpubench.study import rows
from gpubench.study.interfaces import Costs, Executor, Listener
from gpubench.study.rows import CONTROL
from gpubench.study.schedule import Schedule
from gpubench.toggles.traits import compiles

LEADERS = 2  # fastest configurations that race with the baseline, beside the simplest one that may be as fast
MEASURING = ("build", "apply", "first step", "warm-up", "samples")
RUNOFF_ROUNDS = 3  # to choose; what the choice is worth is then measured in the final
FEWEST_ROUNDS = 3  # the fewest processes whose spread says anything (two degrees of freedom)
MORE_ROUNDS = 3  # at most so many take the place of rounds in which others used the machine
# Seconds after which no further round of runoff or final begins, unless their number was asked for.
ROUNDS_S = 60.0


@dataclass
class Study:
    """One run's state. `report` is what is on disk, but for the configuration under way."""

    pool: Costs
    bench: Executor
    builder: Builder
    matrix: Matrix
    report: Report
    path: Path
    listener: Listener
    objective: Objective = "fps"
    max_memory_bytes: int | None = None
    strict: bool = False
    rounds_s: float = ROUNDS_S  # of runoff, and of final
    _rows: dict[str, Measurement] = field(default_factory=dict)
    unsaved: str = ""  # why the newest report is not on disk
    _position: int = 0
    _measuring: float = 0.0  # seconds of this session's processes in MEASURING

    def __post_init__(self) -> None:
        self._rows = {row.id: rows.allowed(row, self.report.plan.allow) for row in self.report.measurements}
        self._position = sum(len(row.rounds) for row in self._rows.values())
        self.schedule = Schedule(self.report.protocol.seed)

    # ----- the two kinds of run

    def compare(self) -> Report:
        """Baseline, each technique alone, the ladder, the best combination; then runoff and final on fresh data."""
        self._begin(len(self.matrix.techniques) if self.matrix.strategy == "ladder" else 0)
        order = self._explore([self.matrix.baseline])
        baseline = self._rows[self.matrix.baseline.id]
        if baseline.status != "ok":
            self.listener.note(f"The baseline is {baseline.status}: what runs is still ranked, without a speed-up.")
        order += self._explore(self.matrix.planned)
        if self.matrix.strategy == "ladder":
            order += self._climb()
        self._more_rounds(order)
        if self.report.protocol.final_rounds:
            self._runoff()
            self._final()
            self._drop_empty_control()
        return self._conclude()

    def sweep(self, conclude: Callable[[Report], Summary]) -> Report:
        """Every value of one toggle; a value that does not fit does not end it."""
        self._begin(0)
        order = self._explore([self.matrix.baseline])
        order += self._explore(self.matrix.planned)
        self._more_rounds(order)
        self._flag_noise()
        self.report = msgspec.structs.replace(self.report, sweep=conclude(self.report))
        return self._conclude()

    def _begin(self, rungs_to_come: int) -> None:
        self._save(first=True)
        todo = [self.matrix.baseline, *self.matrix.planned]
        self._expect(todo, rungs_to_come)
        self.pool.start_servers(row.configuration for row in todo if not row.skip)

    # ----- exploring

    def _explore(self, planned: Iterable[Candidate]) -> list[str]:
        """Measures those that have no row yet, in random order; their ids in that order."""
        by_id = {one.id: one for one in planned}
        for one in by_id.values():
            if known := self._rows.get(one.id):
                roles = [*known.roles, *(role for role in one.roles if role not in known.roles)]
                self._put(msgspec.structs.replace(known, roles=roles))
            elif one.skip:
                self._put(rows.skipped(one))
                self.listener.finished(self._rows[one.id])
        order = self.schedule.shuffled([row_id for row_id in by_id if row_id not in self._rows])
        for row_id in order:
            one = by_id[row_id]
            result = self._alone(one, "")
            allow = self.report.plan.allow
            why = next((flag.kind for flag in result.flags if flag.about.repeats and flag.kind not in allow), None)
            if result.status == "ok" and why:
                second = with_compile_time(self._alone(one, f"again, it was {why}"), result)
                result = replace(second, flags=(*second.flags, REMEASURED.flag(f"a first process was {why}")))
            self._put(rows.first_row(one, result, self._position, self.report.protocol.machine_drift))
            self._position += 1
            self.listener.finished(self._rows[row_id])
        return order

    def _alone(self, one: Candidate, note: str) -> Outcome:
        self.listener.started(self._position + 1, one, note)
        return self._account(self.bench.alone(one.id, one.configuration))

    def _account(self, result: Outcome) -> Outcome:
        self._measuring += sum(result.phases_s.get(part, 0.0) for part in MEASURING)
        return result

    def _more_rounds(self, order: list[str]) -> None:
        """The rest of the rounds that every configuration is explored in; `order` is that of the first."""
        ids = [row_id for row_id, row in self._rows.items() if row.rounds and not row.is_control]
        self.schedule.remember(order if sorted(order) == sorted(ids) else ids)
        for index in range(2, self.report.protocol.rounds + 1):
            for row_id in self.schedule.round(index, ids):
                if self._is_due(row_id, "explore", index):
                    note = f"round {index} of {self.report.protocol.rounds}"
                    self._add({row_id: self._alone(self._planned(row_id), note)}, "explore", index)

    def _is_due(self, row_id: str, phase: Phase, index: int) -> bool:
        row = self._rows[row_id]
        return row.status == "ok" and not any(one.phase == phase and one.index == index for one in row.rounds)

    def _add(self, results: Mapping[str, Outcome], phase: Phase, index: int) -> None:
        """Adds a round's processes all at once: on disk there is no round of which one side is missing."""
        for row_id, result in results.items():
            drift = self.report.protocol.machine_drift
            self._set(rows.with_round(self._rows[row_id], result, phase, index, self._position, drift))
            self._position += 1
        self._save()

    def _planned(self, row_id: str) -> Candidate:
        row = self._rows[row_id]
        return Candidate(row.id, row.configuration, tuple(row.roles))

    def _climb(self) -> list[str]:
        """The ladder, each technique with the value that did best alone; then the combination of what helped."""
        chosen = {}
        for technique in self.matrix.techniques:
            value = self._best_alone(technique.toggle)
            if value is not None:
                chosen[technique.toggle] = value
        ladder = rungs(self.builder, self.matrix.techniques, chosen)
        self._expect(ladder, 1)
        order = self._explore(ladder)
        kept = self._worth_keeping(ladder, chosen)
        candidate = self.builder.plan(kept)
        if kept and candidate.id not in self._rows:
            self._expect([candidate], 0)
            order += self._explore([candidate])
        return order

    def _best_alone(self, toggle: str) -> Value | None:
        """The value of `toggle` that was best by itself among the valid rows; None where none is valid."""
        alone = [
            row
            for row in self._rows.values()
            if row.status == "ok" and any(role.kind == "alone" and role.toggle == toggle for role in row.roles)
        ]
        best = min(alone, key=self._cost, default=None)
        return best.configuration[toggle] if best else None

    def _worth_keeping(self, ladder: Sequence[Candidate], chosen: dict[str, Value]) -> dict[str, Value]:
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

    # ----- runoff and final, on fresh data

    def _runoff(self) -> None:
        """Baseline and leaders in interleaved rounds, to choose; nothing to race where only one may be the best."""
        leaders = self._leaders()
        if len(leaders) > 1:
            self._rounds("runoff", [self.matrix.baseline.id, *leaders], RUNOFF_ROUNDS)

    def _final(self) -> None:
        """The baseline and the choice in interleaved rounds that begin after it was chosen."""
        choice = recommend(self.report, self.objective, self.max_memory_bytes).recommendation
        baseline = self.matrix.baseline.id
        if choice is not None and choice.id != baseline and self._rows[baseline].status == "ok":
            self._rounds("final", [baseline, choice.id, self._control()], self.report.protocol.final_rounds)

    def _drop_empty_control(self) -> None:
        """Takes the control out of the report where it never ran, in this session or the one before."""
        row = self._rows.get(CONTROL)
        if row is not None and row.status == "ok" and not row.rounds:
            del self._rows[CONTROL]
            self._plan(row_id for row_id in self.report.plan.configurations if row_id != CONTROL)
            self._arrange()

    def _plan(self, ids: Iterable[str]) -> None:
        """Notes the rows to be measured in the report, each once."""
        plan = msgspec.structs.replace(self.report.plan, configurations=list(dict.fromkeys(ids)))
        self.report = msgspec.structs.replace(self.report, plan=plan)

    def _control(self) -> str:
        """The id of a row that repeats the baseline, for what identical configurations differ by in the same rounds.

        It only ever takes part in rounds: everything else is known of the baseline.
        """
        if CONTROL not in self._rows:
            self._rows[CONTROL] = rows.control(self._rows[self.matrix.baseline.id])
            self._plan([*self.report.plan.configurations, CONTROL])
        return CONTROL

    def _leaders(self) -> list[str]:
        """The rows that may be the best, as far as exploring can tell: the first ones, and the simplest."""
        best_first = contenders(self.report, self.objective, self.max_memory_bytes)
        ids = [row_id for row_id in best_first if row_id != self.matrix.baseline.id]
        simplest = min(ids, key=self._changes, default=None)
        return list(dict.fromkeys([*ids[:LEADERS], *([simplest] if simplest else [])]))

    def _changes(self, row_id: str) -> int:
        """How many toggles the row changes from the baseline."""
        base = self.matrix.baseline.configuration
        return sum(value != base.get(name) for name, value in self._rows[row_id].configuration.items())

    def _rounds(self, phase: Phase, ids: list[str], count: int) -> None:
        begun = time.monotonic()
        for index in range(1, count + MORE_ROUNDS + 1):
            if index > count and self._undisturbed(phase, ids) >= count:
                return
            order = self.schedule.round(index, ids)
            due = [row_id for row_id in order if self._is_due(row_id, phase, index)]
            if sum(not self._rows[row_id].is_control and self._rows[row_id].status == "ok" for row_id in ids) < 2:
                return  # nothing is left to be told apart
            if not due or len(due) < sum(self._rows[row_id].status == "ok" for row_id in ids):
                continue  # measured before this run went on: a side that is missing would be of another time
            late = time.monotonic() - begun > self.rounds_s
            if late and index > count:
                return
            if late and index > FEWEST_ROUNDS:
                note = f"The {phase} ended after {index - 1} of {count} rounds: {self.rounds_s:.0f} s had passed."
                self.report = msgspec.structs.replace(self.report, notes=[*self.report.notes, note])
                self.listener.note(note)
                return
            self.listener.started(self._position + 1, self._planned(due[0]), f"{phase}, round {index} of {count}")
            needs = together_bytes(map(self._in_memory, due), self.report.device.kind)
            if CONTROL in due and needs is not None and needs > self.pool.free_memory_bytes():
                due.remove(CONTROL)  # without it the others may still be measured in turns
                needs = together_bytes(map(self._in_memory, due), self.report.device.kind)
            results = self.bench.together([(row_id, self._rows[row_id].configuration) for row_id in due], needs)
            self._add({row_id: self._account(result) for row_id, result in results.items()}, phase, index)

    def _in_memory(self, row_id: str) -> Measurement:
        """The row that says how much memory that one takes."""
        return self._rows[self.matrix.baseline.id if row_id == CONTROL else row_id]

    def _undisturbed(self, phase: Phase, ids: list[str]) -> int:
        """How many rounds of `phase` nobody else disturbed."""
        parts = [part for row_id in ids for part in self._rows[row_id].rounds if part.phase == phase]
        disturbed = {part.index for part in parts if is_disturbed(part, self.report.plan.allow)}
        return len({part.index for part in parts} - disturbed)

    # ----- keeping the report

    def _expect(self, planned: Sequence[Candidate], rungs_to_come: int) -> None:
        """Tells how much is due, and notes the configurations in the report's plan."""
        protocol = self.report.protocol
        waiting = [one for one in planned if not one.skip and one.id not in self._rows]
        compiled = sum(is_compiled(one) for one in waiting)
        again = (protocol.rounds - 1) * (len(waiting) + len(self._rows) + rungs_to_come)
        done = sum(one.phase != "explore" for row in self._rows.values() for one in row.rounds)
        extra = RUNOFF_ROUNDS * (1 + LEADERS) + 3 * protocol.final_rounds if protocol.final_rounds else 0
        rounds = max(0, extra - done) + again
        self.listener.planned(len(waiting) - compiled + rungs_to_come + rounds, compiled + (rungs_to_come > 0))
        self._plan([*self.report.plan.configurations, *(one.id for one in planned)])

    def _set(self, row: Measurement) -> None:
        row = rows.allowed(row, self.report.plan.allow)
        self._rows[row.id] = rows.strict(row) if self.strict else row
        self._arrange()

    def _put(self, row: Measurement) -> None:
        self._set(row)
        self._save()

    def _arrange(self) -> None:
        # The order of the plan, whatever the order of measuring.
        place = {row_id: index for index, row_id in enumerate(self.report.plan.configurations)}
        ordered = sorted(self._rows.values(), key=lambda one: place.get(one.id, len(place)))
        self.report = msgspec.structs.replace(self.report, measurements=ordered)

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

    def _flag_noise(self) -> None:
        baseline = find(self.report, self.report.plan.baseline)
        for row_id, row in self._rows.items():
            against = baseline if baseline is None or row_id != baseline.id else rival(row, self.report.measurements)
            flagged = with_noise_flags(row, against, self.report.measurements)
            self._rows[row_id] = rows.strict(flagged) if self.strict else flagged
        self._arrange()

    def _conclude(self) -> Report:
        self._flag_noise()
        self.report = msgspec.structs.replace(
            self.report,
            finished_at=now(),
            notes=list(dict.fromkeys([*self.report.notes, *self.pool.notes, *self._warnings()])),
            harness=self.pool.harness(self._measuring),
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
        busy = [row.id for row in self._rows.values() if any(flag.label == CONTAMINATED.name for flag in row.flags)]
        if not busy:
            return []
        many = f"{len(busy)} of {len(self._rows)} rows were"
        return [
            f"{many} measured while others used the machine: the figures may be far off. Run it again on a quiet "
            "machine, or accept it with --allow contaminated."
        ]

    def _mark_recommended(self, row_id: str) -> None:
        marked = []
        for row in self.report.measurements:
            roles = [role for role in row.roles if role != rows.RECOMMENDED]  # of a run that this one goes on with
            roles += [rows.RECOMMENDED] if row.id == row_id else []
            marked.append(msgspec.structs.replace(row, roles=roles))
        self.report = msgspec.structs.replace(self.report, measurements=marked)


def with_compile_time(again: Outcome, first: Outcome) -> Outcome:
    """`again` with the first call of the process before it, the only one whose compile cache was empty."""
    if again.prepared is None or first.prepared is None:
        return again
    cold = msgspec.structs.replace(again.prepared, compile_time_s=first.prepared.compile_time_s)
    return replace(again, prepared=cold)


def is_compiled(planned: Candidate) -> bool:
    """Whether measuring it begins with a compilation."""
    return compiles(planned.configuration)
