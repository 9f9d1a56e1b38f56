"""The engine of every run: asks the executor for processes, round by round, and puts what they gave into rows."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from gpubench.analysis.peak_memory import together_bytes
from gpubench.executor.executor import Executor, Job
from gpubench.executor.outcome import Outcome
from gpubench.flags import REMEASURED
from gpubench.report.model import Measurement
from gpubench.search.space import Candidate
from gpubench.stats.processes import Phase, is_disturbed
from gpubench.study import rows
from gpubench.study.book import Book
from gpubench.study.schedule import Schedule
from gpubench.text import plural

MEASURING = ("build", "apply", "first step", "warm-up", "samples")  # phases of a process that are no overhead


@dataclass(frozen=True)
class Entry:
    """A row that takes part in rounds. `target` names its book, and what it is measured on."""

    row_id: str
    target: str = ""

    @property
    def job_id(self) -> str:
        """The row's name among those of all targets."""
        return f"{self.target} {self.row_id}" if self.target else self.row_id


@dataclass(frozen=True)
class StopRule:
    """When rounds end."""

    count: int  # after so many rounds
    minimum: int = 0  # so many rounds run whatever the time
    limit_s: float = math.inf  # no further round begins after so many seconds
    replacements: int = 0  # at most so many further rounds take the place of disturbed ones
    # Asked once, after `count` rounds: True goes on until `limit_s`. Asking after every round until something is
    # significant would find a difference in identical code.
    undecided: Callable[[], bool] | None = None

    def is_over(self, done: int, seconds: float, undisturbed: Callable[[], int]) -> bool:
        """Whether to end after `done` rounds in `seconds`; `undisturbed` counts the rounds that nobody disturbed."""
        if done < min(self.minimum, self.count):
            return False
        late = seconds >= self.limit_s
        if late or done < self.count:
            return late
        if self.undecided is not None:
            return done == self.count and not self.undecided()
        return done >= self.count + self.replacements or undisturbed() >= self.count


class Rounds:
    """Runs rounds and keeps what they gave in `books`, by target; a study has one target, whose name is empty.

    `drift` is the machine's, see `Protocol.machine_drift`; 0 where rows are only compared within their rounds. With
    `remeasure` a first process that was disturbed is measured once more.
    """

    def __init__(
        self, executor: Executor, books: Mapping[str, Book], *, drift: float = 0.0, remeasure: bool = False
    ) -> None:
        self.executor, self.books, self.drift, self.remeasure = executor, books, drift, remeasure
        book = next(iter(books.values()))
        self.listener = book.listener
        self.schedule = Schedule(book.report.protocol.seed)
        self.measuring_s = 0.0  # what this session's processes spent in MEASURING

    @property
    def position(self) -> int:
        """How many processes have been measured, over all books."""
        return sum(book.position for book in self.books.values())

    # ----- a row's first process

    def explore(self, candidates: Iterable[Candidate]) -> list[str]:
        """Measures `candidates` that have no row yet, each alone, in random order; their job ids in that order."""
        waiting: dict[str, tuple[Entry, Candidate]] = {}
        for candidate, target in itertools.product(candidates, self.books):
            book, entry = self.books[target], Entry(candidate.id, target)
            if known := book.rows.get(candidate.id):
                roles = [*known.roles, *(role for role in candidate.roles if role not in known.roles)]
                book.put(msgspec.structs.replace(known, roles=roles))
                book.save()
            elif candidate.skip:
                self._begin_row(entry, rows.skipped(candidate))
            else:
                waiting[entry.job_id] = entry, candidate
        order = self.schedule.shuffled(list(waiting))
        for entry, candidate in map(waiting.__getitem__, order):
            outcome = self._first(entry, candidate)
            self._begin_row(entry, rows.first_row(candidate, outcome, self.position, self.drift))
        return order

    def _begin_row(self, entry: Entry, row: Measurement) -> None:
        book = self.books[entry.target]
        book.put(row)
        book.save()
        self.listener.finished(book.rows[row.id])

    def _first(self, entry: Entry, candidate: Candidate) -> Outcome:
        result = self._alone(entry, candidate, f"side {entry.target} alone" if entry.target else "")
        allow = self.books[entry.target].report.plan.allow
        why = next((flag.kind for flag in result.flags if flag.about.repeats and flag.kind not in allow), None)
        if self.remeasure and result.status == "ok" and why:
            second = with_compile_time(self._alone(entry, candidate, f"again, it was {why}"), result)
            result = replace(second, flags=(*second.flags, REMEASURED.flag(f"a first process was {why}")))
        return result

    def _alone(self, entry: Entry, candidate: Candidate, note: str) -> Outcome:
        self.listener.started(self.position + 1, candidate, note)
        return self._account(self.executor.run_alone(Job(entry.job_id, candidate.configuration, entry.target)))

    # ----- further rounds

    def run(
        self,
        phase: Phase,
        entries: Sequence[Entry],
        rule: StopRule,
        *,
        first: int = 1,
        apart: bool = False,
        since: float | None = None,
    ) -> None:
        """Rounds of `phase` from index `first` on until `rule` ends them, without those that the rows have already.

        `apart`: one job after the other, else all of a round at the same time. Those rounds are whole or not at all: a
        row that is missing in one was measured at another time. They end where fewer than two rows can be compared.
        `since`: when the time limit began (time.monotonic()); None: now.
        """
        begun = time.monotonic() if since is None else since
        by_job = {entry.job_id: entry for entry in entries}
        for index in itertools.count(first):
            done = index - 1
            if rule.is_over(done, time.monotonic() - begun, lambda: self._undisturbed(phase, entries)):
                if done < rule.count:
                    rounds = plural(rule.count, "round")
                    self._note(f"The {phase} ended after {done} of {rounds}: {rule.limit_s:.0f} s had passed.")
                return
            order = [by_job[job_id] for job_id in self.schedule.round(index, list(by_job))]
            due = [entry for entry in order if self._is_due(entry, phase, index)]
            label = f"round {index} of {rule.count}" if index <= rule.count else f"round {index}"
            if apart:
                for entry in due:
                    job = self._job(entry)
                    self.listener.started(self.position + 1, candidate_of(self._row(entry)), label)
                    self._add({job.id: self.executor.run_alone(job)}, {job.id: entry}, phase, index)
                continue
            alive = [row for row in map(self._row, entries) if row.status == "ok"]
            if sum(not row.is_control for row in alive) < 2:
                return
            if not due or len(due) < len(alive):
                continue
            self.listener.started(self.position + 1, candidate_of(self._row(due[0])), f"{phase}, {label}")
            due, needed = self._fitting(due)
            results = self.executor.run_round([self._job(entry) for entry in due], needed)
            self._add(results, by_job, phase, index)

    def _note(self, text: str) -> None:
        for book in self.books.values():
            book.note(text)
        self.listener.note(text)

    def _row(self, entry: Entry) -> Measurement:
        return self.books[entry.target].rows[entry.row_id]

    def _job(self, entry: Entry) -> Job:
        return Job(entry.job_id, self._row(entry).configuration, entry.target)

    def _is_due(self, entry: Entry, phase: Phase, index: int) -> bool:
        row = self._row(entry)
        return row.status == "ok" and not any(part.phase == phase and part.index == index for part in row.rounds)

    def _fitting(self, due: list[Entry]) -> tuple[list[Entry], int | None]:
        """`due` and the bytes that they take together; without the control where only that makes the others fit."""
        needed = self._needed_bytes(due)
        if needed is not None and needed > self.executor.free_memory_bytes():
            due = [entry for entry in due if not self._row(entry).is_control]
            needed = self._needed_bytes(due)
        return due, needed

    def _needed_bytes(self, entries: Sequence[Entry]) -> int | None:
        book = self.books[entries[0].target]
        # The control repeats the baseline, whose row says how much memory both take.
        known = [
            self._row(Entry(book.report.plan.baseline, entry.target) if self._row(entry).is_control else entry)
            for entry in entries
        ]
        return together_bytes(known, book.report.device.kind)

    def _undisturbed(self, phase: Phase, entries: Sequence[Entry]) -> int:
        """How many rounds of `phase` nobody else disturbed."""
        seen, disturbed = set[int](), set[int]()
        for entry in entries:
            allow = self.books[entry.target].report.plan.allow
            parts = [part for part in self._row(entry).rounds if part.phase == phase]
            seen |= {part.index for part in parts}
            disturbed |= {part.index for part in parts if is_disturbed(part, allow)}
        return len(seen - disturbed)

    def _add(self, results: Mapping[str, Outcome], by_job: Mapping[str, Entry], phase: Phase, index: int) -> None:
        """Adds a round's processes all at once: on disk there is no round of which a part is missing."""
        for job_id, outcome in results.items():
            entry = by_job[job_id]
            row = rows.with_round(self._row(entry), self._account(outcome), phase, index, self.position, self.drift)
            self.books[entry.target].put(row)
        for book in self.books.values():
            book.save()

    def _account(self, result: Outcome) -> Outcome:
        self.measuring_s += sum(result.phases_s.get(part, 0.0) for part in MEASURING)
        return result


def candidate_of(row: Measurement) -> Candidate:
    """The candidate that `row` was made of."""
    return Candidate(row.id, row.configuration, tuple(row.roles))


def with_compile_time(again: Outcome, first: Outcome) -> Outcome:
    """`again` with the first call of the process before it, the only one whose compile cache was empty."""
    if again.prepared is None or first.prepared is None:
        return again
    cold = msgspec.structs.replace(again.prepared, compile_time_s=first.prepared.compile_time_s)
    return replace(again, prepared=cold)
