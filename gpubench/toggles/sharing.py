"""Which configurations can live in one process, so that they can be compared there, block by block in turn.

Whatever a configuration sets for the whole process (environment, threads, torch's flags, dynamo's caches) would be set
for the others in it as well: those that differ in it need a process each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gpubench.toggles import get
from gpubench.toggles.toggle import Toggle, Value


def can_share(configurations: Sequence[Mapping[str, Value]]) -> str | None:
    """The sentence why `configurations` cannot live in one process, or None where they can.

    A toggle that only some of them name counts as a difference, if it sets anything for the process at all.
    Raises GpubenchError for a toggle that is not known.
    """
    names = dict.fromkeys(name for configuration in configurations for name in configuration)
    for toggle in map(get, names):
        if reason := _differs(toggle, configurations):
            return reason
    if any(one.get("allocator") == "system" for one in configurations) and any(
        one != configurations[0] for one in configurations
    ):
        return (
            "glibc's allocator moves its thresholds by what a process has done, so that one of them would be measured "
            "with the other's history."
        )
    compiled = sum(configuration.get("compile", "off") != "off" for configuration in configurations)
    if compiled > 1:
        return (
            f"{compiled} of the configurations are compiled, and dynamo's caches, recompile limit and automatic "
            "dynamic shapes are the whole process's."
        )
    return None


def _differs(toggle: Toggle, configurations: Sequence[Mapping[str, Value]]) -> str | None:
    first = configurations[0]
    for other in configurations[1:]:
        if _state(toggle, first) != _state(toggle, other):
            return f"{_named(toggle, first)} and {_named(toggle, other)} differ in what they set for the whole process."
        if _environment(toggle, first) != _environment(toggle, other):
            return f"{_named(toggle, first)} and {_named(toggle, other)} need different environment variables."
    return None


def _state(toggle: Toggle, configuration: Mapping[str, Value]) -> object:
    # A configuration that does not name the toggle leaves torch's own default, which is like setting nothing and unlike
    # setting any value, even that of the default.
    return toggle.process_state(configuration[toggle.name]) if toggle.name in configuration else None


def _environment(toggle: Toggle, configuration: Mapping[str, Value]) -> dict[str, str]:
    named = toggle.name in configuration
    return toggle.environment(configuration[toggle.name]) if toggle.environment and named else {}


def _named(toggle: Toggle, configuration: Mapping[str, Value]) -> str:
    return f"{toggle.name}={configuration[toggle.name]}" if toggle.name in configuration else f"no {toggle.name}"


def groups(configurations: Sequence[Mapping[str, Value]]) -> list[list[int]]:
    """The indexes of `configurations` in groups that can each live in one process; first come, first placed.

    A repeat lives as the others do: with its twin where that one shares a process with something else, or where there
    is nothing else; by itself where that one does.
    """
    placed: list[list[int]] = []
    repeats: list[int] = []
    for index, configuration in enumerate(configurations):
        if configuration in configurations[:index] and any(one != configuration for one in configurations):
            repeats.append(index)
            continue
        for group in placed:
            if can_share([*(configurations[member] for member in group), configuration]) is None:
                group.append(index)
                break
        else:
            placed.append([index])
    for index in repeats:
        repeat = configurations[index]
        twin = next(group for group in placed if any(configurations[one] == repeat for one in group))
        members = [configurations[one] for one in twin]
        if any(one != repeat for one in members) and can_share([*members, repeat]) is None:
            twin.append(index)
        else:
            placed.append([index])
    return placed
