"""Two sides against each other on one machine, in rounds that each hold both.

Each side has a report of its own, and both are of one session: rounds of the same index were measured together. The
verdict comes from `regression.comparison` on the two reports, as it would from the files later.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from gpubench.executor.executor import Executor
from gpubench.executor.outcome import now
from gpubench.regression.comparison import NamedReport, check
from gpubench.regression.verdicts import Check, Limits
from gpubench.search.space import Candidate
from gpubench.study.book import Book
from gpubench.study.rounds import Entry, Rounds, StopRule

SideName = Literal["a", "b"]
SIDES: tuple[SideName, SideName] = ("a", "b")
FEWEST_AB_ROUNDS = 5  # whatever the time limit: fewer cannot tell an effect from chance


@dataclass
class Comparison:
    """One run of both sides, each of which is a target of the executor and has a report in `books`, still without rows.

    After `rounds` a row is decided for the first time, after `time_limit_s` for the second time.
    """

    executor: Executor
    books: Mapping[str, Book]
    labels: Mapping[SideName, str]  # what people call the sides
    limits: Limits
    rounds: int
    time_limit_s: float
    family: int = field(default=1, init=False)  # rows in the end: each look at the data is corrected for all of them

    @property
    def unsaved(self) -> str:
        """Why a report is not on disk."""
        return next((book.unsaved for book in self.books.values() if book.unsaved), "")

    def run(self, candidates: Sequence[Candidate]) -> Check:
        """Measures every candidate on both sides; the verdict on b.

        Each side runs alone first (memory, compilation, outputs), then in rounds until it is decided or time is up.
        """
        for book in self.books.values():
            book.save(first=True)
        engine = Rounds(self.executor, self.books)
        engine.listener.planned(2 * len(candidates) * (1 + self.rounds), 0)
        self.family = len(candidates)
        for candidate in candidates:
            begun = time.monotonic()
            engine.explore([candidate])
            entries = [Entry(candidate.id, side) for side in SIDES]
            rule = StopRule(
                count=max(FEWEST_AB_ROUNDS, self.rounds),
                minimum=FEWEST_AB_ROUNDS,
                limit_s=self.time_limit_s,
                undecided=partial(self._is_undecided, candidate.id),
            )
            engine.run("final", entries, rule, since=begun)
        for book in self.books.values():
            book.update(finished_at=now(), notes=list(dict.fromkeys([*book.report.notes, *self.executor.notes])))
            book.save()
        return self.verdict()

    def verdict(self) -> Check:
        """What the two reports say now."""
        sources = [NamedReport(self.labels[side], self.books[side].report) for side in SIDES]
        return check(sources[1], sources[0], self.limits, family=self.family)

    def _is_undecided(self, row_id: str) -> bool:
        findings = [finding for row in self.verdict().rows if row.id == row_id for finding in row.findings]
        return any((finding.metric, finding.verdict) == ("fps", "inconclusive") for finding in findings)
