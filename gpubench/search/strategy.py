"""What a strategy is: a function that looks at what was measured so far and proposes what to measure next."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from gpubench.errors import GpubenchError
from gpubench.plugins import called
from gpubench.report.model import Measurement, Role
from gpubench.search.space import Builder, Candidate, ToggleValues


@dataclass(frozen=True)
class SearchSpace:
    """The toggles and values to search, around one baseline."""

    builder: Builder  # makes candidates, and knows what cannot run here
    strategy: Strategy  # chooses among them
    toggles: tuple[ToggleValues, ...]  # in the order in which they are added up
    baseline: Candidate  # what all rows are compared with
    refused: tuple[Candidate, ...] = ()  # what was asked for and does not apply here, skipped
    together: tuple[Candidate, ...] = ()  # combinations that were asked for, whatever the strategy proposes

    @property
    def planned(self) -> tuple[Candidate, ...]:
        """What the strategy proposes before anything was measured."""
        return tuple(History(self).proposed())


@dataclass(frozen=True)
class History:
    """What a strategy decides from."""

    space: SearchSpace
    rows: Mapping[str, Measurement] = field(default_factory=dict)  # what was measured, by id; skipped and failed too
    # What the objective wants small of a row, such as seconds per item; infinite where the row is not valid.
    cost: Callable[[Measurement], float] = lambda _: math.inf

    def proposed(self) -> list[Candidate]:
        """What the strategy proposes next."""
        strategy = self.space.strategy
        candidates = called("strategy", strategy.name, strategy.propose, self)
        if not (isinstance(candidates, Sequence) and all(isinstance(each, Candidate) for each in candidates)):
            raise GpubenchError(f"The strategy {strategy.name!r} proposed {candidates!r}, not candidates.")
        return self.missing([*candidates, *self.space.together, *self.space.refused])

    def missing(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Those of `candidates` that have no row yet, or a row that lacks one of their roles; never the baseline."""
        return [
            candidate
            for candidate in candidates
            if candidate.id != self.space.baseline.id
            and (candidate.id not in self.rows or not set(candidate.roles) <= set(self.rows[candidate.id].roles))
        ]


def unchanged(builder: Builder, toggles: Sequence[ToggleValues]) -> Candidate:
    """The baseline that changes nothing; GpubenchError where it cannot run."""
    baseline = builder.plan({}, Role(kind="baseline"))
    if baseline.skip:
        raise GpubenchError(f"The baseline cannot run: {baseline.skip}.", "Change what --fix or --batch-size asks for.")
    return baseline


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """A way to search. A distribution adds one by an entry point of the group `gpubench.strategies`.

    Args:
        name: What `--strategy` calls it.
        propose: The next candidates to measure, each alone. It is asked again with their rows, until it proposes
            nothing new. It may propose again what has a row.
        baseline: The row that all others are compared with.
        outlook: One line for each candidate that is likely to follow the first proposal; for progress and --dry-run.
        offered: Whether `--strategy` accepts it.

    Example:
        Every value alone, and then the best one with 8 threads:

            def propose(history):
                alone = each.propose(history)
                if history.missing(alone):
                    return alone
                best = min(history.rows.values(), key=history.cost)
                return [history.space.builder.plan({**best.configuration, "threads": 8})]
    """

    name: str
    propose: Callable[[History], Sequence[Candidate]]
    baseline: Callable[[Builder, Sequence[ToggleValues]], Candidate] = unchanged
    outlook: Callable[[SearchSpace], list[str]] = lambda _: []
    offered: bool = True
