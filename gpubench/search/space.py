"""Toggles × workload × device → configurations worth running, in order, and those skipped, each with its sentence."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gpubench.errors import GpubenchError, unknown_name
from gpubench.report.model import Configuration, Role, Value
from gpubench.toggles import all_toggles, get
from gpubench.toggles.toggle import Scope, Toggle
from gpubench.toggles.traits import with_prerequisites, without_idle

STRATEGIES = ("ladder", "each", "grid")


@dataclass(frozen=True)
class ToggleValues:
    """One toggle of a matrix with the values to try beside its baseline."""

    toggle: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Candidate:
    """A configuration to measure, or (`skip`) the sentence why it cannot be."""

    id: str
    configuration: Configuration
    roles: tuple[Role, ...]
    skip: str = ""


@dataclass(frozen=True)
class Matrix:
    """What a run measures. For a ladder, the rungs follow from the rows measured first: see `rungs`."""

    strategy: str
    baseline: Candidate
    planned: tuple[Candidate, ...]  # without the baseline
    techniques: tuple[ToggleValues, ...]
    fixed: Configuration = field(default_factory=dict)  # held in every row
    left_out: dict[str, str] = field(default_factory=dict)  # toggle -> why it does not apply here


def configuration_id(configuration: Mapping[str, Value], defaults: Mapping[str, Value]) -> str:
    """A configuration's name: its changed toggles, `precision=bf16-autocast,compile=default`, or `baseline`."""
    changed = [f"{name}={value}" for name, value in configuration.items() if value != defaults.get(name)]
    return ",".join(changed) or "baseline"


class Builder:
    """Makes configurations in one scope: which toggles apply, what their defaults are, what cannot be done."""

    def __init__(self, scope: Scope, fix: Mapping[str, Value] | None = None) -> None:
        self.scope = scope
        self.left_out: dict[str, str] = {}
        self.toggles: dict[str, Toggle] = {}
        for name, toggle in all_toggles().items():
            reason = toggle.applies(scope)
            if reason is None:
                self.toggles[name] = toggle
            else:
                self.left_out[name] = reason
        self.defaults: Configuration = {name: toggle.baseline(scope) for name, toggle in self.toggles.items()}
        for name in fix or {}:
            self.require(name)
        self.fixed: Configuration = dict(fix or {})
        self.base: Configuration = {**self.defaults, **self.fixed}

    def require(self, name: str) -> Toggle:
        """The toggle `name`; GpubenchError where it is unknown or does not apply here."""
        toggle = get(name)
        if name in self.left_out:
            raise GpubenchError(
                f"Toggle {name!r} does not apply here: {self.left_out[name]}.",
                f"Toggles that do: {', '.join(self.toggles)}.",
            )
        return toggle

    def plan(self, changes: Mapping[str, Value], *roles: Role) -> Candidate:
        """The base configuration with `changes` and their prerequisites, and the sentence why it cannot run, if so."""
        changes = with_prerequisites(changes, self.base, self.scope, held=self.fixed)
        configuration = {**self.base, **changes}
        return Candidate(
            configuration_id(configuration, self.defaults), configuration, roles, self.impossible(configuration)
        )

    def impossible(self, configuration: Mapping[str, Value]) -> str:
        """The sentence why `configuration` cannot run here, or an empty string."""
        for name, value in configuration.items():
            toggle = self.toggles[name]
            if reason := toggle.unmet(self.scope, value, configuration):
                return f"{name}={value} {reason}"
        return ""


def merge(rows: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Each configuration once, in first order, with the roles of all."""
    found: dict[str, Candidate] = {}
    for row in rows:
        known = found.get(row.id)
        roles = (known.roles if known else ()) + row.roles
        found[row.id] = Candidate(row.id, row.configuration, tuple(dict.fromkeys(roles)), row.skip)
    return tuple(found.values())


def build_matrix(builder: Builder, techniques: Sequence[ToggleValues], strategy: str) -> Matrix:
    """The matrix of `techniques` by `strategy`: `ladder`, `each` (one at a time) or `grid` (all combinations).

    Techniques whose toggle does not apply in the scope are left out. Raises GpubenchError where the baseline itself
    cannot run, or the strategy is unknown.
    """
    if strategy not in STRATEGIES:
        raise unknown_name("strategy", strategy, STRATEGIES)
    usable = [technique for technique in techniques if get(technique.toggle).name in builder.toggles]
    baseline = builder.plan({}, Role(kind="baseline"))
    if baseline.skip:
        raise GpubenchError(f"The baseline cannot run: {baseline.skip}.", "Change what --fix or --batch-size asks for.")
    rows: list[Candidate] = []
    if strategy == "grid":
        axes = [
            [(one.toggle, value) for value in dict.fromkeys((builder.base[one.toggle], *one.values))] for one in usable
        ]
        rows = [builder.plan(dict(choice), Role(kind="grid")) for choice in itertools.product(*axes)]
    else:
        for one in usable:
            for value in one.values:
                rows.append(builder.plan({one.toggle: value}, Role(kind="alone", toggle=one.toggle)))
    planned = tuple(row for row in merge(rows) if row.id != baseline.id)
    return Matrix(strategy, baseline, planned, tuple(usable), builder.fixed, dict(builder.left_out))


def rungs(builder: Builder, techniques: Sequence[ToggleValues], chosen: Mapping[str, Value]) -> tuple[Candidate, ...]:
    """The ladder: `chosen` values (toggle → value) added one at a time in the techniques' order.

    The last rung holds them all.
    """
    changes: Configuration = {}
    order = [technique.toggle for technique in techniques if technique.toggle in chosen]
    rows = []
    for step, name in enumerate(order, start=1):
        changes[name] = chosen[name]
        roles = [Role(kind="ladder", toggle=name, step=step)]
        if step == len(order):
            roles.append(Role(kind="all"))
        rows.append(builder.plan(changes, *roles))
    return merge(rows)


def sweep(builder: Builder, toggle: str, values: Sequence[Value], also: Sequence[ToggleValues] = ()) -> Matrix:
    """Every value of one toggle (and every combination with `also`), in the order given; the first is the baseline."""
    builder.require(toggle)
    axes = [[(toggle, value) for value in dict.fromkeys(values)]]
    axes += [[(one.toggle, value) for value in dict.fromkeys(one.values)] for one in also]
    choices = (dict(choice) for choice in itertools.product(*axes))
    role = Role(kind="sweep", toggle=toggle)
    rows = merge(_named(builder.plan(without_idle(choice), role), toggle) for choice in choices)
    runnable = next((row for row in rows if not row.skip), None)
    if runnable is None:
        raise GpubenchError(f"No value of the sweep can run: {rows[0].skip}.", "Choose other values.")
    baseline = Candidate(runnable.id, runnable.configuration, (Role(kind="baseline"), *runnable.roles))
    others = tuple(row for row in rows if row.id != baseline.id)
    swept = (ToggleValues(toggle, tuple(values)), *also)
    return Matrix("sweep", baseline, others, swept, builder.fixed, dict(builder.left_out))


def _named(row: Candidate, toggle: str) -> Candidate:
    """`row`, called by its value even where that is the workload's own: the sweep's baseline is another row."""
    own = configuration_id({}, {})
    return replace(row, id=f"{toggle}={row.configuration[toggle]}") if row.id == own else row
