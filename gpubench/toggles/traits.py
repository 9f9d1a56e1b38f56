"""What toggles' traits say of a whole configuration. Toggles that are not known here (an older report's) have none."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from gpubench.errors import GpubenchError
from gpubench.report.model import Value
from gpubench.toggles import all_toggles, bundled_toggles
from gpubench.toggles.toggle import Scope, Toggle, as_number

Values = Mapping[str, Value]  # toggle name -> value


def _known() -> Mapping[str, Toggle]:
    try:
        return all_toggles()
    except GpubenchError:  # a broken plug-in must not make reports unreadable; commands that measure tell of it
        return bundled_toggles()


def compiles(configuration: Values) -> bool:
    """Whether the first step of `configuration` is a compilation."""
    return any(value in _known()[name].compiles for name, value in configuration.items() if name in _known())


def replays_graphs(configuration: Values) -> bool:
    """Whether a step of `configuration` replays CUDA graphs, whose memory torch counts as reserved only."""
    return any(value in _known()[name].replays_graphs for name, value in configuration.items() if name in _known())


def picks_by_time(configuration: Values) -> bool:
    """Whether kernels of `configuration` are picked by timing them, so that another process may run others."""
    return any(value in _known()[name].picks_by_time for name, value in configuration.items() if name in _known())


def ranks_anew_compiled(toggle: str) -> bool:
    """Whether the best value of `toggle` may be another one in compiled code."""
    return toggle in _known() and _known()[toggle].ranks_anew_compiled


def noise_group(configuration: Values) -> str:
    """What makes identical processes of `configuration` differ more than usual; empty where nothing does.

    A toggle that `configuration` does not name counts as its first value.
    """
    groups = (
        toggle.noise_group.get(configuration.get(name, next(iter(toggle.values), "")), "")
        for name, toggle in _known().items()
    )
    return " and ".join(filter(None, groups))


def steady_values(scope: Scope | None = None) -> dict[str, Value]:
    """For each toggle whose baseline is noisy, its first steady value, where that can run in `scope` (None: assumed).

    Toggles of the environment are left out where the user's own environment makes the choice already.
    """
    steady: dict[str, Value] = {}
    for name, toggle in _known().items():
        baseline = next(iter(toggle.values), None)
        value = next((each for each in toggle.values if each not in toggle.noise_group), None)
        if baseline not in toggle.noise_group or value is None or baseline is None:
            continue
        if toggle.environment and toggle.environment(baseline):
            continue
        if scope is None or (toggle.applies(scope) or toggle.unmet(scope, value)) is None:
            steady[name] = value
    return steady


def reference_values(scope: Scope) -> dict[str, Value]:
    """For each toggle whose baseline may not be what outputs are compared with, the value that is."""
    return {name: toggle.reference(scope) for name, toggle in _known().items() if toggle.reference}


def with_prerequisites(changes: Values, base: Values, scope: Scope, held: Collection[str] = ()) -> dict[str, Value]:
    """`changes` to `base` with what they need beside them: the first value allowed that can run in `scope`.

    Toggles in `changes` and in `held` keep their values, and toggles that `base` lacks are not added.
    """
    complete = dict(changes)
    waiting = list(changes.items())
    for name, value in waiting:  # grows by what is added, which may need something in turn
        prerequisites = _known()[name].prerequisites.get(value, {}) if name in _known() else {}
        for other, allowed in prerequisites.items():
            if other in complete or other in held or base.get(other, allowed[0]) in allowed:
                continue
            toggle = _known()[other]
            complete[other] = next((each for each in allowed if toggle.unmet(scope, each) is None), allowed[0])
            waiting.append((other, complete[other]))
    return complete


def without_idle(changes: Values) -> dict[str, Value]:
    """`changes` without the toggles that do nothing beside the others."""
    return {
        name: value
        for name, value in changes.items()
        if name not in _known()
        or not any(changes.get(other) in values for other, values in _known()[name].idle_when.items())
    }


def magnitude(name: str, value: Value) -> float:
    """Where `value` of the toggle `name` stands from small to large."""
    return _known()[name].magnitude(value) if name in _known() else as_number(value)


def batch_size_toggle() -> str:
    """The name of the toggle whose value is the number of items in one step."""
    return next(name for name, toggle in _known().items() if toggle.sets_batch_size)


def batch_size(configuration: Values, default: int) -> int:
    """The number of items in one step of `configuration`; `default` where it does not say."""
    return int(configuration.get(batch_size_toggle(), default))
