"""What the user asked to try and to hold fixed: `--set`, `--fix` and presets are read here and nowhere else."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from gpubench.errors import GpubenchError
from gpubench.report.model import Configuration, Value
from gpubench.search.presets import OFFERED, Preset, check_name, load_preset
from gpubench.search.space import Builder, ToggleValues
from gpubench.toggles import all_toggles, get, parse_value
from gpubench.toggles.toggle import Scope

DEFAULT_PRESET = "default"
EXAMPLES = {"--set": "precision=bf16-autocast", "--fix": "precision=fp32", "--param": "task=decode"}


def split_assignment(text: str, option: str) -> tuple[str, str]:
    """`NAME=VALUE` in two; GpubenchError where there is no `=` or a side is empty."""
    name, equals, value = (part.strip() for part in text.partition("="))
    if not (name and equals and value):
        raise GpubenchError(f"{option} {text!r} is not NAME=VALUE.", f"Give for example {option} {EXAMPLES[option]}.")
    return name, value


def assignments(texts: Iterable[str], option: str) -> dict[str, list[str]]:
    """`NAME=V1,V2` texts as name -> values; those of one name add up."""
    values: dict[str, list[str]] = {}
    for text in texts:
        name, value = split_assignment(text, option)
        values.setdefault(name, []).extend(part.strip() for part in value.split(","))
    return values


def value_of(name: str, text: str, scope: Scope) -> Value:
    """The value of the toggle `name` that `text` means, OFFERED included. Raises GpubenchError as `parse_value`."""
    toggle = get(name)
    offered = toggle.offered(scope) if text == OFFERED and toggle.applies(scope) is None else ()
    return offered[1] if len(offered) > 1 else parse_value(toggle, text, scope)


@dataclass(frozen=True)
class Requested:
    """What to try and what to hold. Values are text still: which are allowed may depend on the device and workload."""

    values: Mapping[str, Sequence[str]] = field(default_factory=dict)  # toggle -> values to try (`--set`)
    fixed: Mapping[str, str] = field(default_factory=dict)  # toggle -> value in every row (`--fix`)
    preset: Preset | None = None  # further toggles to try and to hold
    together: Sequence[Mapping[str, str]] = ()  # toggle -> value, that are measured at once

    def fixed_values(self, scope: Scope) -> Configuration:
        """The toggles held at one value: the preset's, then the user's own."""
        preset = self.preset.fix if self.preset else {}
        held = {name: str(value) for name, value in preset.items() if name not in self.values}
        return {name: value_of(name, text, scope) for name, text in {**held, **self.fixed}.items()}

    def toggle_values(self, builder: Builder) -> list[ToggleValues]:
        """What to try beside the baseline, in order: the preset's toggles with the user's values, then the others.

        Toggles that do not apply here are among them. Raises GpubenchError for a value that is unknown, and where no
        toggle of the user's applies.
        """
        scope = builder.scope
        wanted = {
            name: tuple(parse_value(get(name), text, scope if name in builder.toggles else None) for text in texts)
            for name, texts in self.values.items()
        }
        if wanted and not builder.toggles.keys() & wanted.keys():
            builder.require(next(iter(wanted)))
        offered = self.preset.toggle_values(scope.workload.mode, scope.device.kind) if self.preset else ()
        together: dict[str, tuple[Value, ...]] = {}
        known = all_toggles()  # a bundled preset may name what only another workload brings
        for entry in (entry for entry in offered if entry.toggle in known and entry.toggle not in builder.fixed):
            values = tuple(value_of(entry.toggle, str(value), scope) for value in entry.values)
            together[entry.toggle] = together.get(entry.toggle, ()) + values
        together |= wanted
        return [
            ToggleValues(name, tuple(value for value in dict.fromkeys(values) if value != builder.base.get(name)))
            for name, values in together.items()
        ]

    def combinations(self, builder: Builder) -> list[Configuration]:
        """What to try at once, whether or not it can run here; of the preset's only what is known here."""
        scope = builder.scope
        offered = self.preset.combinations(scope.workload.mode, scope.device.kind) if self.preset else ()
        known = all_toggles().keys()
        asked = [*self.together, *(each for each in offered if each.keys() <= known)]
        return [{name: value_of(name, str(value), scope) for name, value in each.items()} for each in asked]

    def environments(self) -> list[Configuration]:
        """Each value that is set before Python starts, whether or not it can run here."""
        tried = [(name, value) for name, values in self.values.items() for value in values]
        entries = self.preset.technique if self.preset else []
        tried += [(entry.toggle, str(value)) for entry in entries for value in entry.values]
        known = all_toggles()
        return [
            {name: value}
            for name, value in tried
            if name in known and known[name].environment and value in known[name].values
        ]


def read_request(
    values: Mapping[str, Sequence[str]],
    fixed: Mapping[str, str],
    preset: str | None = None,
    default: str | None = DEFAULT_PRESET,
    brought: Collection[str] | None = (),
    together: Sequence[Mapping[str, str]] = (),
) -> Requested:
    """What the values to try, those to hold and the preset of that name or file ask for.

    Without `values` and `preset` it is the preset `default`. `brought`: further toggles, which the workload brings
    with it; None: it is not known yet which. `together`: combinations to try. Raises GpubenchError for what is wrong on
    any device: an unknown toggle, a damaged preset.
    """
    for name in (*values, *fixed, *(name for each in together for name in each)):
        check_name(name, brought)
    if both := [name for name in values if name in fixed]:
        raise GpubenchError(f"--set and --fix both name {', '.join(both)}.", "Leave one of them out.")
    chosen = preset or (None if values or together else default)
    return Requested(values, fixed, load_preset(chosen, brought) if chosen else None, together)
