"""The registry of toggles: those bundled here and those that other distributions name as entry points."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import entry_points

from gpubench.errors import GpubenchError, unknown_name
from gpubench.plugins import load_plugin, name_taken
from gpubench.report.model import Value
from gpubench.toggles.toggle import AS_BUILT, Scope, Stage, Toggle

ENTRY_POINT_GROUP = "gpubench.toggles"


_beside: ContextVar[dict[str, Toggle] | None] = ContextVar("toggles with a workload's own", default=None)


@contextmanager
def with_own(toggles: Iterable[Toggle]) -> Iterator[None]:
    """Inside the block `toggles` are known like all others: those that a workload brings with it."""
    token = _beside.set(beside(toggles))
    try:
        yield
    finally:
        _beside.reset(token)


def beside(toggles: Iterable[Toggle]) -> dict[str, Toggle]:
    """All toggles and `toggles`, in the order in which they are applied."""
    more = {toggle.name: toggle for toggle in toggles}
    return _in_order({**more, **installed_toggles()}) if more else installed_toggles()


def all_toggles() -> dict[str, Toggle]:
    """Every toggle by name, in the order in which they are applied; raises GpubenchError as `installed_toggles` does.

    Inside `with_own` those of a workload are among them.
    """
    return _beside.get() or installed_toggles()


@functools.cache
def installed_toggles() -> dict[str, Toggle]:
    """The toggles that belong to no workload, in the order in which they are applied: by stage, `after`, and name.

    Raises GpubenchError if a third-party entry point cannot be loaded or its name is taken, or if the toggles' `after`
    contradict each other or the stages.
    """
    found = dict(bundled_toggles())
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        toggle = load_plugin("toggle", entry_point, Toggle)
        if toggle.name in found:
            raise name_taken("toggle", toggle.name, entry_point, found)
        found[toggle.name] = toggle
    return _in_order(found)


@functools.cache
def bundled_toggles() -> dict[str, Toggle]:
    """The toggles of gpubench itself by name, in the order in which they are applied."""
    # A module of a family's folder defines a toggle if it has a `Toggle` with the module's name in capitals; the others
    # are shared code.
    toggles = {}
    for module in pkgutil.walk_packages(__path__, f"{__name__}."):
        toggle = getattr(importlib.import_module(module.name), module.name.rpartition(".")[2].upper(), None)
        if isinstance(toggle, Toggle):
            toggles[toggle.name] = toggle
    return _in_order(toggles)


def _in_order(toggles: Mapping[str, Toggle]) -> dict[str, Toggle]:
    placed: dict[str, Toggle] = {}
    waiting = sorted(toggles.values(), key=lambda each: (each.stage, each.name))
    while waiting:
        names = {toggle.name for toggle in waiting}
        first = next((toggle for toggle in waiting if not names.intersection(toggle.after)), None)
        if first is None or first.stage != waiting[0].stage:
            stuck = ", ".join(f"{toggle.name} after {' and '.join(toggle.after)}" for toggle in waiting if toggle.after)
            raise GpubenchError(
                f"The toggles cannot be ordered: {stuck}.",
                "Remove one `after`; toggles of a later stage always come later.",
            )
        placed[first.name] = first
        waiting.remove(first)
    return placed


def get(name: str) -> Toggle:
    """The toggle called `name`; GpubenchError with the nearest name where there is none."""
    toggles = all_toggles()
    if name not in toggles:
        raise unknown_name("toggle", name, toggles, "`gpubench toggles` lists them.")
    return toggles[name]


def parse_value(toggle: Toggle, text: str, scope: Scope | None = None) -> Value:
    """The value that `text` names: one of those offered, or a whole number or another text if the toggle accepts any.

    With a `scope`, one that the toggle rejects there (a tile size that is not a multiple) is an error too.
    What the device cannot do is no error: such rows are skipped. Raises GpubenchError.
    """
    offered = {str(value): value for value in (*toggle.values, *(toggle.offered(scope) if scope else ()))}
    text = text.strip()
    if text in offered:
        return offered[text]
    if toggle.texts and re.fullmatch(toggle.texts.pattern, text):
        if scope and toggle.check and (reason := toggle.check(scope, text, {})):
            hint = f"Offered: {', '.join(offered)}. Allowed: {toggle.texts.meaning}."
            raise GpubenchError(f"{toggle.name}={text} is not allowed: it {reason}.", hint)
        return text
    integers, value = toggle.integers, _integer(text)
    if integers is None or (value is None and toggle.values):
        more = f"Or a whole number from {integers.low} to {integers.high}. " if integers else ""
        more += f"Or {toggle.texts.meaning}. " if toggle.texts else ""
        hint = f"{more}`gpubench toggles {toggle.name}` explains them."
        raise unknown_name(f"value of toggle {toggle.name}", text, offered, hint)
    if value is None or not integers.low <= value <= integers.high:
        raise GpubenchError(
            f"{toggle.name}={text!r} is not allowed.",
            f"Give a whole number from {integers.low} to {integers.high}: {integers.meaning}.",
        )
    if scope and toggle.check and (reason := toggle.check(scope, value, {})):
        raise GpubenchError(
            f"{toggle.name}={value} is not allowed: it {reason}.",
            f"Offered: {', '.join(offered)}. Allowed: whole numbers from {integers.low} to {integers.high}.",
        )
    return value


def _integer(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def usage(configuration: Mapping[str, Value], scope: Scope | None = None) -> str:
    """Shell and Python code that applies `configuration` in the user's own program, in the order of application.

    What plain code does by itself is left out, which is the first value of most toggles. `scope`: where it was
    measured, so that the lines do what was done there.
    Raises GpubenchError for a toggle that is not known.
    """
    for name in configuration:
        get(name)
    chosen = [toggle for name, toggle in all_toggles().items() if name in configuration]
    for toggle in chosen:
        if scope and toggle.changes_facts:
            changed = toggle.changes_facts(scope.workload, configuration[toggle.name])
            scope = dataclasses.replace(scope, workload=changed)
    shell: list[str] = []
    python: list[str] = []
    for toggle in chosen:
        value = configuration[toggle.name]
        plain = toggle.baseline(scope) if scope else next(iter(toggle.values), None)
        idle = any(configuration.get(other) in values for other, values in toggle.idle_when.items())
        if value != plain and plain == AS_BUILT and toggle.undo:
            python.append(toggle.undo(scope))
        if value != plain or not (toggle.is_plain or idle):
            beside = toggle.usage_beside
            text = beside(value, scope, configuration) if beside else toggle.usage(value, scope)
            (shell if toggle.stage is Stage.ENVIRONMENT else python).append(text.strip())
    if shell:
        shell.insert(0, "# in the shell, before Python starts")
    if python and any("torch." in part for part in python):
        python.insert(0, "import torch")
    return "\n".join([*shell, *([""] if shell and python else []), *filter(None, python)])
