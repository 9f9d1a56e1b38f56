"""All values of one toggle in the order given, in all combinations with the values of others."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from gpubench.errors import GpubenchError
from gpubench.report.model import Role
from gpubench.search.space import Builder, Candidate, ToggleValues, configuration_id, merge
from gpubench.search.strategy import History, Strategy
from gpubench.toggles.traits import without_idle


def combinations(builder: Builder, toggles: Sequence[ToggleValues]) -> tuple[Candidate, ...]:
    """Every combination; the first toggle is the one that is swept."""
    swept = toggles[0].toggle
    axes = [[(entry.toggle, value) for value in dict.fromkeys(entry.values)] for entry in toggles]
    choices = (dict(choice) for choice in itertools.product(*axes))
    role = Role(kind="sweep", toggle=swept)
    return merge(_named(builder.plan(without_idle(choice), role), swept) for choice in choices)


def _named(row: Candidate, toggle: str) -> Candidate:
    """`row`, called by its value even where that is the workload's own: the sweep's baseline is another row."""
    own = configuration_id({}, {})
    return replace(row, id=f"{toggle}={row.configuration[toggle]}") if row.id == own else row


def first_that_runs(builder: Builder, toggles: Sequence[ToggleValues]) -> Candidate:
    """The baseline of a sweep: its first value that can run here; GpubenchError where there is none."""
    rows = combinations(builder, toggles)
    runnable = next((row for row in rows if not row.skip), None)
    if runnable is None:
        raise GpubenchError(f"No value of the sweep can run: {rows[0].skip}.", "Choose other values.")
    return replace(runnable, roles=(Role(kind="baseline"), *runnable.roles))


def propose(history: History) -> tuple[Candidate, ...]:
    """All combinations; one that does not fit does not end the sweep."""
    return combinations(history.space.builder, history.space.toggles)


SWEEP = Strategy(name="sweep", propose=propose, baseline=first_that_runs, offered=False)
