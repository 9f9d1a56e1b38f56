"""Each value alone: what one change brings."""

from __future__ import annotations

from gpubench.report.model import Role
from gpubench.search.space import Candidate, merge
from gpubench.search.strategy import History, Strategy


def propose(history: History) -> tuple[Candidate, ...]:
    """The baseline with one value changed, for every value."""
    plan = history.space.builder.plan
    return merge(
        plan({entry.toggle: value}, Role(kind="alone", toggle=entry.toggle))
        for entry in history.space.toggles
        for value in entry.values
    )


EACH = Strategy(name="each", propose=propose)
