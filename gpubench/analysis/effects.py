"""What each technique brought, by itself and on top of the others, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpubench.analysis.eligibility import find, gate
from gpubench.analysis.peak_memory import peak_bytes
from gpubench.analysis.speedup import speedup, spread
from gpubench.report.model import Configuration, Measurement, Report, Value
from gpubench.stats.estimate import Estimate
from gpubench.stats.spread import Spreads


@dataclass(frozen=True)
class Effect:
    """One row against the row without the technique. `reason` says why figures are None."""

    scope: Literal["alone", "ladder"]
    toggle: str
    value: Value | None
    id: str
    versus: str | None
    speedup: Estimate | None
    memory_bytes: int | None  # more than the other row; negative: saved
    compile_time_s: float | None  # more than the other row
    payback_iterations: float | None  # None: never, or not known
    reason: str


def changed(configuration: Configuration, baseline: Configuration | None) -> Configuration:
    """The toggles that differ from the baseline's, in the configuration's order."""
    return {name: value for name, value in configuration.items() if (baseline or {}).get(name) != value}


def shown(row: Measurement, baseline: Measurement | None) -> Configuration:
    """What names a row to a reader: the toggles that differ from the baseline's, and in a sweep the one swept."""
    swept = {role.toggle: row.configuration[role.toggle] for role in row.roles if role.kind == "sweep" and role.toggle}
    return {**swept, **changed(row.configuration, baseline.configuration if baseline else None)}


def effects(report: Report) -> list[Effect]:
    """All techniques' effects: alone against the baseline, then each rung of the ladder against the one below it."""
    between = spread(report)
    baseline = find(report, report.plan.baseline)
    found = [
        _effect(row, baseline, "alone", role.toggle, report, between)
        for row in report.measurements
        for role in row.roles
        if role.kind == "alone" and role.toggle
    ]
    below = baseline
    for row, toggle in ladder(report):
        found.append(_effect(row, below, "ladder", toggle, report, between))
        if gate(row) is None:  # a rung that failed is no ground to compare the next one with
            below = row
    return found


def ladder(report: Report) -> list[tuple[Measurement, str]]:
    """The rungs in order, each with the technique that it adds."""
    rungs = [
        (role.step, row, role.toggle)
        for row in report.measurements
        for role in row.roles
        if role.kind == "ladder" and role.toggle and role.step is not None
    ]
    return [(row, toggle) for _, row, toggle in sorted(rungs, key=lambda rung: rung[0])]


def _effect(
    row: Measurement,
    versus: Measurement | None,
    scope: Literal["alone", "ladder"],
    toggle: str,
    report: Report,
    between: Spreads,
) -> Effect:
    reason = ""
    if row.status != "ok":
        reason = f"{row.status}: {row.reason}" if row.reason else row.status
    elif why := gate(row):
        reason = why
    elif versus is None or gate(versus) is not None:
        reason = "there is no valid row to compare it with"
    comparable = None if reason else versus
    return Effect(
        scope=scope,
        toggle=toggle,
        value=row.configuration.get(toggle),
        id=row.id,
        versus=versus.id if versus else None,
        speedup=speedup(row, comparable, between, report.measurements) if comparable else None,
        memory_bytes=memory_difference(row, comparable, report.device.kind),
        compile_time_s=compile_difference(row, comparable),
        payback_iterations=payback_iterations(row, comparable, between),
        reason=reason,
    )


def memory_difference(row: Measurement, versus: Measurement | None, kind: str) -> int | None:
    """Bytes that the row's peak is above the other's; None where either was not measured."""
    mine = peak_bytes(row, kind)
    theirs = peak_bytes(versus, kind) if versus else None
    return None if mine is None or theirs is None else mine - theirs


def compile_difference(row: Measurement, versus: Measurement | None) -> float | None:
    """Seconds that the row's first call took above the other's; None where either was not measured."""
    if versus is None or row.compile_time_s is None or versus.compile_time_s is None:
        return None
    return row.compile_time_s - versus.compile_time_s


def payback_iterations(row: Measurement, versus: Measurement | None, between: Spreads) -> float | None:
    """Steps of the row after which its longer first call has paid for itself; 0 where it is not longer.

    None where the row is not faster, so that it never pays, and where it was not measured.
    """
    gain = speedup(row, versus, between) if versus else None
    extra = compile_difference(row, versus)
    if gain is None or extra is None or row.latency_s is None or gain.ratio <= 1:
        return None
    # Per step of the row: what the same items would have taken in the other one.
    saved = row.latency_s.median * (gain.ratio - 1)
    return max(extra, 0.0) / saved if saved > 0 else None
