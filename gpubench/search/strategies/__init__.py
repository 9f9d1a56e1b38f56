"""The registry of strategies: those bundled here, one a file, and those that other distributions add."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Collection, Sequence
from importlib.metadata import entry_points

from gpubench.errors import unknown_name
from gpubench.plugins import load_plugin, name_taken
from gpubench.report.model import Configuration, Role
from gpubench.search.space import Builder, ToggleValues
from gpubench.search.strategy import SearchSpace, Strategy

ENTRY_POINT_GROUP = "gpubench.strategies"


@functools.cache
def all_strategies() -> dict[str, Strategy]:
    """Every strategy by name.

    Raises GpubenchError where a third-party entry point cannot be loaded or takes a name that is taken.
    """
    known = {}
    for module in pkgutil.iter_modules(__path__):
        # A module here holds one strategy, named like itself in capitals.
        strategy: Strategy = getattr(importlib.import_module(f"{__name__}.{module.name}"), module.name.upper())
        known[strategy.name] = strategy
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        strategy = load_plugin("strategy", entry_point, Strategy)
        if strategy.name in known:
            raise name_taken("strategy", strategy.name, entry_point, known)
        known[strategy.name] = strategy
    return known


def strategy_names() -> list[str]:
    """The names that `--strategy` accepts."""
    return sorted(name for name, strategy in all_strategies().items() if strategy.offered)


def get_strategy(name: str) -> Strategy:
    """The strategy that `--strategy NAME` means; GpubenchError with the nearest name where there is none."""
    if name not in strategy_names():
        raise unknown_name("strategy", name, strategy_names())
    return all_strategies()[name]


def search_space(
    builder: Builder,
    toggles: Sequence[ToggleValues],
    strategy: Strategy,
    asked: Collection[str] = (),
    together: Sequence[Configuration] = (),
) -> SearchSpace:
    """What `strategy` searches: those of `toggles` that apply here, around its baseline.

    Those of the others that the user has `asked` for become rows that say why they do not apply. Each combination of
    `together` is measured as well. Raises GpubenchError where the baseline cannot run.
    """
    usable = tuple(entry for entry in toggles if entry.toggle in builder.toggles)
    refused = tuple(
        builder.plan({entry.toggle: value}, Role(kind="alone", toggle=entry.toggle))
        for entry in toggles
        if entry not in usable and entry.toggle in asked
        for value in entry.values
    )
    beside = tuple(
        builder.plan(values, Role(kind="all") if len(values) > 1 else Role(kind="alone", toggle=next(iter(values))))
        for values in together
    )
    return SearchSpace(builder, strategy, usable, strategy.baseline(builder, usable), refused, beside)
