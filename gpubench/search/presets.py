"""Presets, which name the values to try: bundled ones by name, the user's own TOML files by path."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct, field

from gpubench.errors import GpubenchError, unknown_name
from gpubench.profiles_folder import profiles_folder
from gpubench.report.model import Value
from gpubench.search.space import ToggleValues
from gpubench.search.strategies import get_strategy
from gpubench.toggles import all_toggles, get, parse_value
from gpubench.workloads.catalog import TOGGLES

OFFERED = "offered"  # a value: the first that a toggle offers for a workload beside its baseline, such as a tile size


class PresetEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """One `[[technique]]` of a preset: a toggle, and where its values are tried."""

    toggle: str
    values: list[Value]
    modes: list[Literal["inference", "training"]] = field(default_factory=lambda: ["inference", "training"])
    devices: list[Literal["cpu", "cuda"]] = field(default_factory=lambda: ["cpu", "cuda"])


class PresetCombination(Struct, frozen=True, forbid_unknown_fields=True):
    """One `[[together]]` of a preset: values that are measured at once, and where."""

    values: dict[str, Value]
    modes: list[Literal["inference", "training"]] = field(default_factory=lambda: ["inference", "training"])
    devices: list[Literal["cpu", "cuda"]] = field(default_factory=lambda: ["cpu", "cuda"])


class Preset(Struct, frozen=True, forbid_unknown_fields=True):
    """Which values of which toggles to try, in the order in which a ladder adds them up."""

    name: str
    summary: str
    technique: list[PresetEntry]
    strategy: str = "ladder"
    fix: dict[str, Value] = field(default_factory=dict)
    together: list[PresetCombination] = field(default_factory=list)  # beside what the strategy proposes

    def toggle_values(self, mode: str, device_kind: str) -> tuple[ToggleValues, ...]:
        """Those meant for `mode` on `device_kind`."""
        return tuple(
            ToggleValues(entry.toggle, tuple(entry.values))
            for entry in self.technique
            if mode in entry.modes and device_kind in entry.devices
        )

    def combinations(self, mode: str, device_kind: str) -> tuple[dict[str, Value], ...]:
        """The values that are measured at once, those meant for `mode` on `device_kind`."""
        return tuple(each.values for each in self.together if mode in each.modes and device_kind in each.devices)


def preset_names() -> list[str]:
    """The bundled presets."""
    return sorted(path.stem for path in (profiles_folder() / "matrices").glob("*.toml"))


def check_name(name: str, brought: Collection[str] | None = ()) -> bool:
    """Whether the toggle `name` is known by now; GpubenchError where there is none, not even in `brought`.

    `brought`: toggles that the workload brings with it; None: any, since that is not known yet.
    """
    known = name in all_toggles()
    if not known and brought is not None and name not in brought:
        raise unknown_name("toggle", name, (*all_toggles(), *brought), "`gpubench toggles` lists them.")
    return known


def load_preset(name: str, brought: Collection[str] | None = ()) -> Preset:
    """The preset of that name, or in that file; GpubenchError where there is none or it is damaged.

    `brought`: see `check_name`.
    """
    path = Path(name)
    if not name.endswith(".toml"):
        if name not in preset_names():
            raise unknown_name("preset", name, preset_names(), "Or give a path that ends in .toml.")
        path = profiles_folder() / "matrices" / f"{name}.toml"
        brought = None if brought is None else (*brought, *itertools.chain(*TOGGLES.values()))  # of another workload
    if path.exists() and not path.is_file():  # a pipe might never end
        raise GpubenchError(f"Preset file {name!r} is not a regular file.", "Check the path.")
    try:
        preset = msgspec.convert(tomllib.loads(path.read_text()), Preset)
    except OSError as error:
        raise GpubenchError(f"Preset file {name!r} cannot be read: {error.strerror}.", "Check the path.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise GpubenchError(
            f"Preset file {name!r} is damaged: {error}.", "Compare it with profiles/matrices/default.toml."
        ) from error
    for entry in preset.technique:
        if check_name(entry.toggle, brought):
            for value in entry.values:
                if value != OFFERED:
                    parse_value(get(entry.toggle), str(value))
    for values in (preset.fix, *(each.values for each in preset.together)):
        for toggle, value in values.items():
            if check_name(toggle, brought) and value != OFFERED:
                parse_value(get(toggle), str(value))
    get_strategy(preset.strategy)
    return preset
