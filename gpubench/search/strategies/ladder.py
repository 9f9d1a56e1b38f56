"""Each value alone, then the best values added up one after the other, then those of them that helped.

Some values give the host work that compiled code does not have, such as the casts of autocast. Where their rows waited
for the host, the two best are tried once more in compiled code before one of them is chosen.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from gpubench.flags import HOST_BOUND
from gpubench.report.model import Configuration, Measurement, Role, Value
from gpubench.search.space import Builder, Candidate, ToggleValues, merge
from gpubench.search.strategies import each
from gpubench.search.strategy import History, SearchSpace, Strategy
from gpubench.toggles.traits import compiles, ranks_anew_compiled


def propose(history: History) -> Sequence[Candidate]:
    """What comes next: values alone, some again compiled, cumulative steps, or the steps that were improvements."""
    alone = each.propose(history)
    if history.missing(alone):
        return alone
    chosen = best_alone(history)
    again = compiled_again(history, chosen)
    compiled = list(itertools.chain(*again.values()))
    if history.missing(compiled):
        return compiled
    for toggle, candidates in again.items():
        if valid := [row for each in candidates if (row := history.rows[each.id]).status == "ok"]:
            chosen[toggle] = min(valid, key=history.cost).configuration[toggle]
    steps = cumulative(history.space.builder, history.space.toggles, chosen)
    if history.missing(steps):
        return steps
    kept = worth_keeping(history, steps, chosen)
    return [history.space.builder.plan(kept)] if kept else []


def best_alone(history: History) -> Configuration:
    """For each toggle that has a valid row alone, the value that costs least."""
    ranked = {entry.toggle: ranked_alone(history, entry.toggle) for entry in history.space.toggles}
    return {toggle: rows[0].configuration[toggle] for toggle, rows in ranked.items() if rows}


def ranked_alone(history: History, toggle: str) -> list[Measurement]:
    """The valid rows of the toggle's values alone, the one that costs least first."""
    alone = [
        row
        for row in history.rows.values()
        if row.status == "ok" and any(role.kind == "alone" and role.toggle == toggle for role in row.roles)
    ]
    return sorted(alone, key=history.cost)


def compiled_again(history: History, chosen: Mapping[str, Value]) -> dict[str, list[Candidate]]:
    """Toggle -> its two best values, compiled: where its values rank otherwise then and had to wait for the host.

    None where compiling by itself does not help.
    """
    baseline = history.rows.get(history.space.baseline.id)
    compiler = {
        toggle: value
        for toggle, value in chosen.items()
        if compiles({toggle: value})
        and (baseline is None or history.cost(ranked_alone(history, toggle)[0]) < history.cost(baseline))
    }
    again: dict[str, list[Candidate]] = {}
    for toggle in filter(ranks_anew_compiled, chosen if compiler else ()):
        best = ranked_alone(history, toggle)[:2]
        if len(best) == 2 and any(flag.kind == HOST_BOUND.name for row in best for flag in row.flags):
            values = [row.configuration[toggle] for row in best]
            again[toggle] = [history.space.builder.plan({toggle: value, **compiler}) for value in values]
    return again


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
