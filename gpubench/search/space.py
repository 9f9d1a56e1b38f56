"""Toggles × workload × device → the configurations that can run here, and the sentence why others cannot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from gpubench.errors import GpubenchError
from gpubench.plugins import called
from gpubench.report.model import Configuration, Role, Value
from gpubench.toggles import all_toggles, get
from gpubench.toggles.toggle import Scope, Toggle
from gpubench.toggles.traits import reference_values, with_prerequisites


@dataclass(frozen=True)
class ToggleValues:
    """One toggle with the values to try beside its baseline."""

    toggle: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Candidate:
    """A configuration to measure, or (`skip`) the sentence why it cannot be."""

    id: str
    configuration: Configuration
    roles: tuple[Role, ...]
    skip: str = ""


def configuration_id(configuration: Mapping[str, Value], defaults: Mapping[str, Value]) -> str:
    """A configuration's name: its changed toggles, `precision=bf16-autocast,compile=default`, or `baseline`."""
    changed = [f"{name}={value}" for name, value in configuration.items() if value != defaults.get(name)]
    return ",".join(changed) or "baseline"


class Builder:
    """Makes configurations in one scope: which toggles apply, what their defaults are, what cannot be done."""

    def __init__(self, scope: Scope, fix: Mapping[str, Value] | None = None) -> None:
        self.scope = scope
        reasons = {name: called("toggle", name, toggle.applies, scope) for name, toggle in all_toggles().items()}
        self.left_out = {name: reason for name, reason in reasons.items() if reason is not None}
        self.toggles = {name: get(name) for name in reasons if name not in self.left_out}
        self.defaults: Configuration = {name: toggle.baseline(scope) for name, toggle in self.toggles.items()}
        for name in fix or {}:
            self.require(name)
        # What outputs are compared with: the defaults, but strict and plain where the baseline is not.
        strict = {name: value for name, value in reference_values(scope).items() if name in self.defaults}
        self.reference: Configuration = {**self.defaults, **strict}
        self.fixed: Configuration = dict(fix or {})
        self.base: Configuration = {**self.defaults, **self.fixed}

    def remarks(self) -> list[str]:
        """Sentences of the report on how the workload is built and on what the baseline is because of it."""
        facts = self.scope.workload
        told = [toggle.remark(self.scope) for toggle in self.toggles.values() if toggle.remark]
        settings = ", ".join(f"{name} is {value}" for name, value in facts.settings.items())
        changed = [
            f"The workload's own code changes torch for the whole process: {settings}. That holds in every row, except "
            "for what a toggle sets."
        ]
        return [*filter(None, told), *(changed if settings else []), *facts.notes]

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
            if name in self.left_out:
                return f"{name} does not apply here: {self.left_out[name]}"
            toggle = self.toggles[name]
            if reason := toggle.unmet(self.scope, value, configuration):
                return f"{name}={value} {reason}"
        return ""


def merge(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Each configuration once, where it came first, with the roles of all."""
    merged: dict[str, Candidate] = {}
    for candidate in candidates:
        known = merged.get(candidate.id)
        roles = (known.roles if known else ()) + candidate.roles
        merged[candidate.id] = replace(candidate, roles=tuple(dict.fromkeys(roles)))
    return tuple(merged.values())
