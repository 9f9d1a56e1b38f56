"""Toggles that a workload brings with it, told to processes that do not load the workload.

The workload's code is in the measured processes alone. There its toggles are as they were written; everywhere else a
toggle of the same name stands for each, made of what was found out when the workload was described.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, NoReturn

from gpubench.errors import GpubenchError
from gpubench.report.model import Value
from gpubench.text import printable
from gpubench.toggles.toggle import Conflict, Requirement, Scope, Stage, Toggle
from gpubench.workloads.workload_facts import OwnConflict, OwnToggle, OwnValue

if TYPE_CHECKING:
    from gpubench.toggles.model_context import ModelContext


def check(toggles: Iterable[object], taken: Iterable[str], workload: str) -> None:
    """Raises GpubenchError for what a workload cannot bring; `taken` are the names that are there already."""
    names = set(taken)
    for toggle in toggles:
        if not isinstance(toggle, Toggle):
            raise GpubenchError(
                f"An own toggle of workload {workload!r} is of type {type(toggle).__name__}.",
                "Give `toggles` a tuple of gpubench Toggles.",
            )
        for wrong, hint in (
            (not toggle.name.isidentifier(), "its name is no identifier"),
            (toggle.name in names, "another toggle has that name"),
            (
                toggle.stage is Stage.ENVIRONMENT or toggle.environment is not None,
                "environment variables are set before the workload is known",
            ),
            (toggle.integers is not None or not toggle.values, "its numbers must be listed in `values`"),
            (toggle.texts is not None, "its texts must be listed in `values`"),
            (toggle.sets_batch_size, "batch_size is there already"),
            (
                not all(isinstance(value, str | int) and not isinstance(value, bool) for value in toggle.values),
                "its values must be texts or whole numbers",
            ),
        ):
            if wrong:
                raise GpubenchError(
                    f"Workload {workload!r} cannot bring the toggle {toggle.name!r}: {hint}.", "Change the toggle."
                )
        names.add(toggle.name)


def declared(toggle: Toggle, scope: Scope) -> OwnToggle:
    """What can be said of `toggle` in `scope` without its code."""
    left_out = toggle.applies(scope) or ""
    offered = () if left_out else toggle.offered(scope)
    return OwnToggle(
        name=toggle.name,
        summary=toggle.summary,
        stage=toggle.stage.name,
        source=toggle.source,
        values=[_value(toggle, value, scope) for value in dict.fromkeys((*offered, *toggle.values))],
        left_out=left_out,
        reference=None if left_out or toggle.reference is None else toggle.reference(scope),
        changes_problem=toggle.changes_problem,
        is_plain=toggle.is_plain,
        ranks_anew_compiled=toggle.ranks_anew_compiled,
        compiles=list(toggle.compiles),
        replays_graphs=list(toggle.replays_graphs),
        picks_by_time=list(toggle.picks_by_time),
        idle_when={name: list(values) for name, values in toggle.idle_when.items()},
        conflicts=[
            OwnConflict(value=one.value, other=one.other, other_values=list(one.other_values), reason=one.reason)
            for one in toggle.conflicts
        ],
        after=list(toggle.after),
        claims=list(toggle.claims),
    )


def _value(toggle: Toggle, value: Value, scope: Scope) -> OwnValue:
    magnitude = toggle.magnitude(value)
    return OwnValue(
        value=value,
        meaning=toggle.values.get(value, ""),
        usage=toggle.usage(value, scope),
        impossible=toggle.unmet(scope, value) or "",
        tolerance=toggle.allowed_error(value, scope.workload),
        noise_group=toggle.noise_group.get(value, ""),
        magnitude=magnitude if math.isfinite(magnitude) else None,
        needs={name: list(values) for name, values in toggle.prerequisites.get(value, {}).items()},
    )


def stand_in(own: OwnToggle) -> Toggle:
    """The toggle that stands for `own` where its code is not."""
    values = {each.value: each for each in own.values}

    def elsewhere(context: ModelContext, value: Value) -> NoReturn:
        raise RuntimeError(f"the toggle {own.name} is known here by name alone")

    def magnitude(value: Value) -> float:
        found = values[value].magnitude if value in values else None
        return math.inf if found is None else found

    def needs(reason: str) -> Requirement:
        return Requirement(check=lambda _: reason)

    reference = own.reference
    return Toggle(
        name=own.name,
        summary=own.summary,
        values={value: each.meaning for value, each in values.items()},
        stage=Stage.__members__.get(own.stage, Stage.MODEL),  # a report is data, which may hold anything
        usage=lambda value, _: "\n".join(map(printable, values[value].usage.splitlines())),
        applies=lambda _: own.left_out or None,
        requires={value: needs(each.impossible) for value, each in values.items() if each.impossible},
        conflicts=tuple(
            Conflict(value=one.value, other=one.other, other_values=tuple(one.other_values), reason=one.reason)
            for one in own.conflicts
        ),
        compiles=tuple(own.compiles),
        replays_graphs=tuple(own.replays_graphs),
        picks_by_time=tuple(own.picks_by_time),
        ranks_anew_compiled=own.ranks_anew_compiled,
        prerequisites={
            value: {name: tuple(allowed) for name, allowed in each.needs.items()}
            for value, each in values.items()
            if each.needs
        },
        idle_when={name: tuple(beside) for name, beside in own.idle_when.items()},
        noise_group={value: each.noise_group for value, each in values.items() if each.noise_group},
        after=tuple(own.after),
        is_plain=own.is_plain,
        magnitude=magnitude,
        apply=elsewhere,
        evidence=elsewhere,
        tolerance={value: each.tolerance for value, each in values.items() if each.tolerance is not None},
        reference=None if reference is None else lambda _: reference,
        changes_problem=own.changes_problem,
        claims=tuple(own.claims),
        source=own.source,
    )
