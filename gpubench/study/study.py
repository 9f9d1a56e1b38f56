"""A whole run: exploring by a strategy, then a runoff to choose, then a final to measure the choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from gpubench.analysis.noisy import with_noise_flags
from gpubench.analysis.peak_memory import peak_bytes
from gpubench.analysis.ranking import rank
from gpubench.analysis.recommendation import recommend
from gpubench.executor.executor import Executor
from gpubench.executor.outcome import now
from gpubench.flags import CONTAMINATED
from gpubench.report.model import Measurement, Objective, Report, Summary
from gpubench.search.space import Candidate
from gpubench.search.strategy import History, SearchSpace
from gpubench.stats.processes import Phase
from gpubench.study import rows
from gpubench.study.book import Book
from gpubench.study.rounds import Entry, Rounds, StopRule
from gpubench.study.rows import CONTROL
from gpubench.text import plural
from gpubench.toggles.traits import compiles

LEADERS = 2  # of the runoff: so many of the fastest, beside the simplest one that may be as fast
RUNOFF_ROUNDS = 3  # to choose; what the choice is worth is then measured in the final
FEWEST_ROUNDS = 3  # whatever the time: the fewest processes whose spread says anything (two degrees of freedom)
MORE_ROUNDS = 3  # at most so many take the place of rounds in which others used the machine
# Seconds after which no further round of runoff or final begins, unless their number was asked for.
ROUNDS_S = 60.0


@dataclass
class Study:
    """One run of a strategy over `space`. The report in `book` is empty, or one to continue."""

    executor: Executor
    space: SearchSpace
    book: Book
    objective: Objective = "fps"
    max_memory_bytes: int | None = None  # no row above is recommended
    rounds_s: float = ROUNDS_S  # no further round of the runoff, and of the final, begins after so many seconds

    def __post_init__(self) -> None:
        self.listener = self.book.listener
        drift = self.book.report.protocol.machine_drift
        self.engine = Rounds(self.executor, {"": self.book}, drift=drift, remeasure=True)

    # ----- the two kinds of run

    def compare(self) -> Report:
        """The baseline and all that the strategy proposes; then runoff and final on fresh data."""
        self._explore()
        if self.book.report.protocol.final_rounds:
            self._runoff()
            self._final()
            self._drop_empty_control()
        return self._conclude()

    def sweep(self, conclude: Callable[[Report], Summary]) -> Report:
        """The baseline and all that the strategy proposes; `conclude` says what follows from it."""
        self._explore()
        self.book.put(*with_noise_flags(self.book.report))
        self.book.update(sweep=conclude(self.book.report))
        return self._conclude()

    # ----- exploring

    def _explore(self) -> None:
        """Baseline first, then what the strategy proposes until that is nothing new; then the rest of the rounds."""
        self.book.save(first=True)
        first, later = [self.space.baseline, *self.space.planned], len(self.space.strategy.outlook(self.space))
        self._expect(first, later)
        self.executor.prepare(candidate.configuration for candidate in first if not candidate.skip)
        order = self.engine.explore([self.space.baseline])
        baseline = self.book.rows[self.space.baseline.id]
        if baseline.status != "ok":
            self.listener.note(
                f"The baseline is {baseline.status}, so nothing can be compared with it: {baseline.reason}"
            )
        while candidates := History(self.space, self.book.rows, self._cost).proposed():
            self._expect(candidates, later)
            order += self.engine.explore(candidates)
            later = 0
        self._more_rounds(order)

    def _more_rounds(self, order: list[str]) -> None:
        """The rest of the rounds that every configuration is explored in; `order` is that of the first."""
        ids = [row_id for row_id, row in self.book.rows.items() if row.rounds and not row.is_control]
        self.engine.schedule.remember(order if sorted(order) == sorted(ids) else ids)
        rule = StopRule(count=self.book.report.protocol.rounds)
        self.engine.run("explore", [Entry(row_id) for row_id in ids], rule, first=2, apart=True)

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
        """Baseline and leaders in interleaved rounds, to choose; none where only one row may be the best."""
        leaders = self._leaders()
        if len(leaders) > 1:
            self._rounds("runoff", [self.space.baseline.id, *leaders], RUNOFF_ROUNDS)

    def _final(self) -> None:
        """The baseline, the choice and the simplest row tied with it, in rounds that begin after it was chosen."""
        choice = recommend(self.book.report, self.objective, self.max_memory_bytes).recommendation
        baseline = self.space.baseline.id
        if choice is not None and choice.id != baseline and self.book.rows[baseline].status == "ok":
            ids = [baseline, choice.id, *self._rivals(choice.id), self._control()]
            self._rounds("final", ids, self.book.report.protocol.final_rounds)

    def _rivals(self, choice: str) -> list[str]:
        """The row that may take the choice's place on fresh data: the best one, tied with it, or a simpler one.

        Where the choice is the best row itself, that is the simplest of those that more noise would tie with it.
        """
        ranking = rank(self.book.report, self.objective, self.max_memory_bytes)
        others = [row for row in ranking.nearly_tied() if row.id != self.space.baseline.id]
        best_or_simplest = [*others[:1], *sorted(others, key=ranking.simplicity)[:1]]
        return [row.id for row in best_or_simplest if row.id != choice][:1]

    def _drop_empty_control(self) -> None:
        """Takes the control out of the report where it never ran, in this session or the one before."""
        row = self.book.rows.get(CONTROL)
        if row is not None and row.status == "ok" and not row.rounds:
            self.book.remove(CONTROL)

    def _control(self) -> str:
        """The id of the A/A control: the baseline once more, which shows how much identical configurations differ.

        It only ever takes part in rounds: everything else is known of the baseline.
        """
        if CONTROL not in self.book.rows:
            self.book.plan([*self.book.report.plan.configurations, CONTROL])
            self.book.put(rows.control(self.book.rows[self.space.baseline.id]))
        return CONTROL

    def _leaders(self) -> list[str]:
        """The rows that may be the best, as far as exploring can tell: the first ones, and the simplest."""
        ranking = rank(self.book.report, self.objective, self.max_memory_bytes)
        others = [row for row in ranking.contenders() if row.id != self.space.baseline.id]
        simplest = sorted(others, key=ranking.simplicity)[:1]
        return list(dict.fromkeys(row.id for row in [*others[:LEADERS], *simplest]))

    def _rounds(self, phase: Phase, ids: list[str], count: int) -> None:
        rule = StopRule(count=count, minimum=FEWEST_ROUNDS, limit_s=self.rounds_s, replacements=MORE_ROUNDS)
        self.engine.run(phase, [Entry(row_id) for row_id in ids], rule)

    # ----- keeping the report

    def _expect(self, candidates: Sequence[Candidate], later: int) -> None:
        """Tells how many processes are due, with about `later` more candidates, and notes the rows in the plan."""
        protocol = self.book.report.protocol
        waiting = [candidate for candidate in candidates if not candidate.skip and candidate.id not in self.book.rows]
        compiled = sum(compiles(candidate.configuration) for candidate in waiting)
        again = (protocol.rounds - 1) * (len(waiting) + len(self.book.rows) + later)
        done = sum(part.phase != "explore" for row in self.book.rows.values() for part in row.rounds)
        extra = RUNOFF_ROUNDS * (1 + LEADERS) + 4 * protocol.final_rounds if protocol.final_rounds else 0
        rounds = max(0, extra - done) + again
        self.listener.planned(len(waiting) - compiled + later + rounds, compiled + (later > 0))
        self.book.plan([*self.book.report.plan.configurations, *(candidate.id for candidate in candidates)])

    def _conclude(self) -> Report:
        self.book.put(*with_noise_flags(self.book.report))
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
        measured = self.book.report.measurements
        busy = sum(any(flag.label == CONTAMINATED.name for flag in row.flags) for row in measured)
        text = (
            f"In {busy} of {plural(len(measured), 'row')} other processes used the machine, so the figures may be far "
            "off. Run it again on a quiet machine, or accept that with --allow contaminated."
        )
        return [text] if busy else []

    def _mark_recommended(self, row_id: str) -> None:
        marked = []
        for row in self.book.report.measurements:
            roles = [role for role in row.roles if role != rows.RECOMMENDED]  # of a run that this one resumes
            roles += [rows.RECOMMENDED] if row.id == row_id else []
            marked.append(msgspec.structs.replace(row, roles=roles))
        self.book.update(measurements=marked)
