"""Every combination of all values, those of the baseline included."""

from __future__ import annotations

import itertools

from gpubench.report.model import Role
from gpubench.search.space import Candidate, merge
from gpubench.search.strategy import History, Strategy


def propose(history: History) -> tuple[Candidate, ...]:
    """All combinations."""
    builder = history.space.builder
    axes = [
        [(entry.toggle, value) for value in dict.fromkeys((builder.base[entry.toggle], *entry.values))]
        for entry in history.space.toggles
    ]
    return merge(builder.plan(dict(choice), Role(kind="grid")) for choice in itertools.product(*axes))


GRID = Strategy(name="grid", propose=propose)
