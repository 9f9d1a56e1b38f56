"""Each value alone, then the best values added up one after the other, then those of them that helped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gpubench.report.model import Configuration, Role, Value
from gpubench.search.space import Builder, Candidate, ToggleValues, merge
from gpubench.search.strategies import each
from gpubench.search.strategy import History, SearchSpace, Strategy


def propose(history: History) -> Sequence[Candidate]:
    """What comes next: values alone, cumulative steps, or the combination of the steps that were improvements."""
    alone = each.propose(history)
    if history.missing(alone):
        return alone
    chosen = best_alone(history)
    steps = cumulative(history.space.builder, history.space.toggles, chosen)
    if history.missing(steps):
        return steps
    kept = worth_keeping(history, steps, chosen)
    return [history.space.builder.plan(kept)] if kept else []


def best_alone(history: History) -> Configuration:
    """For each toggle that has a valid row alone, the value that costs least."""
    chosen: Configuration = {}
    for entry in history.space.toggles:
        alone = [
            row
            for row in history.rows.values()
            if row.status == "ok" and any(role.kind == "alone" and role.toggle == entry.toggle for role in row.roles)
        ]
        if alone:
            chosen[entry.toggle] = min(alone, key=history.cost).configuration[entry.toggle]
    return chosen


def cumulative(builder: Builder, toggles: Sequence[ToggleValues], chosen: Mapping[str, Value]) -> tuple[Candidate, ...]:
    """`chosen` values (toggle -> value) added one at a time in the order of `toggles`; the last step holds them all.

    A value that cannot run beside those before it is a skipped step, and the later ones do without it.
    """
    changes: Configuration = {}
    steps: list[Candidate] = []
    for name in (entry.toggle for entry in toggles if entry.toggle in chosen):
        with_it = {**changes, name: chosen[name]}
        steps.append(builder.plan(with_it, Role(kind="ladder", toggle=name, step=len(steps) + 1)))
        changes = changes if steps[-1].skip else with_it
    return merge([*steps, *([builder.plan(changes, Role(kind="all"))] if changes else [])])


def worth_keeping(history: History, steps: Sequence[Candidate], chosen: Mapping[str, Value]) -> Configuration:
    """The values whose step cost less than the valid step before it."""
    kept: Configuration = {}
    before = history.rows.get(history.space.baseline.id)
    for step in steps:
        row = history.rows[step.id]
        toggle = next((role.toggle for role in step.roles if role.kind == "ladder"), None)
        if row.status != "ok" or toggle is None:
            continue
        if before is None or history.cost(row) < history.cost(before):
            kept[toggle] = chosen[toggle]
        before = row
    return kept


def outlook(space: SearchSpace) -> list[str]:
    """One line for each cumulative step."""
    values: dict[str, list[str]] = {}
    for candidate in space.planned:
        for role in candidate.roles:
            if role.kind == "alone" and role.toggle and not candidate.skip:
                values.setdefault(role.toggle, []).append(str(candidate.configuration[role.toggle]))
    return [f"+ {toggle}, at the best of {', '.join(tried)}" for toggle, tried in values.items()]


LADDER = Strategy(name="ladder", propose=propose, outlook=outlook)
