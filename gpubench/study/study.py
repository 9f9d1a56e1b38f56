"""A whole run: what is explored, which rows meet in the runoff, and what the final is held for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from gpubench.analysis.eligibility import find
from gpubench.analysis.noisy import rival, with_noise_flags
from gpubench.analysis.peak_memory import peak_bytes
from gpubench.analysis.phases import Phase
from gpubench.analysis.recommendation import contenders, recommend
from gpubench.executor.executor import Executor, compiles
from gpubench.executor.outcome import now
from gpubench.executor.process_flags import kind
from gpubench.report.model import Measurement, Objective, Report, Summary, Value
from gpubench.search.space import Builder, Candidate, Matrix, rungs
from gpubench.study import rows
from gpubench.study.book import Book
from gpubench.study.interfaces import Listener
from gpubench.study.rounds import Entry, Rounds, StopRule
from gpubench.study.rows import CONTROL

LEADERS = 2  # fastest configurations that race with the baseline, beside the simplest one that may be as fast
RUNOFF_ROUNDS = 3  # to choose; what the choice is worth is then measured in the final
FEWEST_ROUNDS = 3  # the fewest processes whose spread says anything (two degrees of freedom)
MORE_ROUNDS = 3  # at most so many take the place of rounds in which others used the machine
# Seconds after which no further round of runoff or final begins, unless their number was asked for.
ROUNDS_S = 60.0


@dataclass
class Study:
    """One run of a strategy.

    Args:
        executor: Measures.
        builder: Makes candidates.
        matrix: What to measure.
        book: The report, which is saved after every process: empty, or one to continue.
        listener: Is told how it goes.
        objective: What the recommendation is best at.
        max_memory_bytes: No row above is recommended.
        rounds_s: No further round of the runoff, and of the final, begins after so many seconds.
    """

    executor: Executor
    builder: Builder
    matrix: Matrix
    book: Book
    listener: Listener
    objective: Objective = "fps"
    max_memory_bytes: int | None = None
    rounds_s: float = ROUNDS_S

    def __post_init__(self) -> None:
        protocol = self.book.report.protocol
        self.engine = Rounds(
            self.executor, {"": self.book}, self.listener, protocol.seed, drift=protocol.machine_drift, remeasure=True
        )

    # ----- the two kinds of run

    def compare(self) -> Report:
        """Baseline, each technique alone, the ladder, the best combination; then runoff and final on fresh data."""
        self._begin(len(self.matrix.techniques) if self.matrix.strategy == "ladder" else 0)
        order = self.engine.explore([self.matrix.baseline])
        baseline = self.book.rows[self.matrix.baseline.id]
        if baseline.status != "ok":
            self.listener.note(f"The baseline is {baseline.status}: what runs is still ranked, without a speed-up.")
        order += self.engine.explore(self.matrix.planned)
        if self.matrix.strategy == "ladder":
            order += self._climb()
        self._more_rounds(order)
        if self.book.report.protocol.final_rounds:
            self._runoff()
            self._final()
            self._drop_empty_control()
        return self._conclude()

    def sweep(self, conclude: Callable[[Report], Summary]) -> Report:
        """Every value of one toggle; a value that does not fit does not end it."""
        self._begin(0)
        order = self.engine.explore([self.matrix.baseline])
        order += self.engine.explore(self.matrix.planned)
        self._more_rounds(order)
        self._flag_noise()
        self.book.update(sweep=conclude(self.book.report))
        return self._conclude()

    def _begin(self, rungs_to_come: int) -> None:
        self.book.save(first=True)
        todo = [self.matrix.baseline, *self.matrix.planned]
        self._expect(todo, rungs_to_come)
        self.executor.prepare(row.configuration for row in todo if not row.skip)

    # ----- exploring

    def _more_rounds(self, order: list[str]) -> None:
        """The rest of the rounds that every configuration is explored in; `order` is that of the first."""
        ids = [row_id for row_id, row in self.book.rows.items() if row.rounds and not row.is_control]
        self.engine.schedule.remember(order if sorted(order) == sorted(ids) else ids)
        rule = StopRule(count=self.book.report.protocol.rounds)
        self.engine.run("explore", [Entry(row_id) for row_id in ids], rule, first=2, apart=True)

    def _climb(self) -> list[str]:
        """The ladder, each technique with the value that did best alone; then the combination of what helped."""
        chosen = {}
        for technique in self.matrix.techniques:
            value = self._best_alone(technique.toggle)
            if value is not None:
                chosen[technique.toggle] = value
        ladder = rungs(self.builder, self.matrix.techniques, chosen)
        self._expect(ladder, 1)
        order = self.engine.explore(ladder)
        kept = self._worth_keeping(ladder, chosen)
        candidate = self.builder.plan(kept)
        if kept and candidate.id not in self.book.rows:
            self._expect([candidate], 0)
            order += self.engine.explore([candidate])
        return order

    def _best_alone(self, toggle: str) -> Value | None:
        """The value of `toggle` that was best by itself among the valid rows; None where none is valid."""
        alone = [
            row
            for row in self.book.rows.values()
            if row.status == "ok" and any(role.kind == "alone" and role.toggle == toggle for role in row.roles)
        ]
        best = min(alone, key=self._cost, default=None)
        return best.configuration[toggle] if best else None

    def _worth_keeping(self, ladder: Sequence[Candidate], chosen: dict[str, Value]) -> dict[str, Value]:
        """The techniques whose rung was an improvement over the rung below it."""
        kept: dict[str, Value] = {}
        below = self.book.rows[self.matrix.baseline.id]
        for rung in ladder:
            row = self.book.rows[rung.id]
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
            used = peak_bytes(row, self.book.report.device.kind)
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
        choice = recommend(self.book.report, self.objective, self.max_memory_bytes).recommendation
        baseline = self.matrix.baseline.id
        if choice is not None and choice.id != baseline and self.book.rows[baseline].status == "ok":
            self._rounds("final", [baseline, choice.id, self._control()], self.book.report.protocol.final_rounds)

    def _drop_empty_control(self) -> None:
        """Takes the control out of the report where it never ran, in this session or the one before."""
        row = self.book.rows.get(CONTROL)
        if row is not None and row.status == "ok" and not row.rounds:
            self.book.remove(CONTROL)

    def _control(self) -> str:
        """The id of a row that repeats the baseline, for what identical configurations differ by in the same rounds.

        It only ever takes part in rounds: everything else is known of the baseline.
        """
        if CONTROL not in self.book.rows:
            self.book.plan([*self.book.report.plan.configurations, CONTROL])
            self.book.put(rows.control(self.book.rows[self.matrix.baseline.id]))
        return CONTROL

    def _leaders(self) -> list[str]:
        """The rows that may be the best, as far as exploring can tell: the first ones, and the simplest."""
        best_first = contenders(self.book.report, self.objective, self.max_memory_bytes)
        ids = [row_id for row_id in best_first if row_id != self.matrix.baseline.id]
        simplest = min(ids, key=self._changes, default=None)
        return list(dict.fromkeys([*ids[:LEADERS], *([simplest] if simplest else [])]))

    def _changes(self, row_id: str) -> int:
        """How many toggles the row changes from the baseline."""
        base = self.matrix.baseline.configuration
        return sum(value != base.get(name) for name, value in self.book.rows[row_id].configuration.items())

    def _rounds(self, phase: Phase, ids: list[str], count: int) -> None:
        rule = StopRule(count=count, minimum=FEWEST_ROUNDS, limit_s=self.rounds_s, replacements=MORE_ROUNDS)
        self.engine.run(phase, [Entry(row_id) for row_id in ids], rule)

    # ----- keeping the report

    def _expect(self, planned: Sequence[Candidate], rungs_to_come: int) -> None:
        """Tells how much is due, and notes the configurations in the report's plan."""
        protocol = self.book.report.protocol
        waiting = [one for one in planned if not one.skip and one.id not in self.book.rows]
        compiled = sum(compiles(one.configuration) for one in waiting)
        again = (protocol.rounds - 1) * (len(waiting) + len(self.book.rows) + rungs_to_come)
        done = sum(one.phase != "explore" for row in self.book.rows.values() for one in row.rounds)
        extra = RUNOFF_ROUNDS * (1 + LEADERS) + 3 * protocol.final_rounds if protocol.final_rounds else 0
        rounds = max(0, extra - done) + again
        self.listener.planned(len(waiting) - compiled + rungs_to_come + rounds, compiled + (rungs_to_come > 0))
        self.book.plan([*self.book.report.plan.configurations, *(one.id for one in planned)])

    def _flag_noise(self) -> None:
        baseline, measured = find(self.book.report, self.matrix.baseline.id), self.book.report.measurements
        against = (baseline if baseline is None or row.id != baseline.id else rival(row, measured) for row in measured)
        self.book.put(*(with_noise_flags(row, other, measured) for row, other in zip(measured, against, strict=True)))

    def _conclude(self) -> Report:
        self._flag_noise()
        book = self.book
        book.update(
            finished_at=now(),
            notes=list(dict.fromkeys([*book.report.notes, *self.executor.notes, *self._warnings()])),
            harness=self.executor.harness_seconds(self.engine.measuring_s),
        )
        advice = recommend(book.report, self.objective, self.max_memory_bytes)
        book.update(recommendation=advice.recommendation)
        if advice.recommendation is not None:
            self._mark_recommended(advice.recommendation.id)
        else:
            book.update(notes=[*book.report.notes, *advice.reasons])
        book.save()
        return book.report

    def _warnings(self) -> list[str]:
        busy = [row.id for row in self.book.rows.values() if any(kind(flag) == "contaminated" for flag in row.flags)]
        if not busy:
            return []
        many = f"{len(busy)} of {len(self.book.rows)} rows were"
        return [
            f"{many} measured while others used the machine: the figures may be far off. Run it again on a quiet "
            "machine, or accept it with --allow contaminated."
        ]

    def _mark_recommended(self, row_id: str) -> None:
        marked = []
        for row in self.book.report.measurements:
            roles = [role for role in row.roles if role != rows.RECOMMENDED]  # of a run that this one goes on with
            roles += [rows.RECOMMENDED] if row.id == row_id else []
            marked.append(msgspec.structs.replace(row, roles=roles))
        self.book.update(measurements=marked)
