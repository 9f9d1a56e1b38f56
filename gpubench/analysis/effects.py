"""What each technique gains and costs, alone and on top of others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpubench.analysis.eligibility import gate
from gpubench.analysis.peak_memory import grows, peak_bytes
from gpubench.analysis.speedup import Speedups
from gpubench.report.model import Configuration, Measurement, Report, Value
from gpubench.stats.estimate import Estimate


@dataclass(frozen=True)
class ToggleEffect:
    """One row against the row without the technique; `reason` says why figures are None."""

    scope: Literal["alone", "ladder"]
    toggle: str
    value: Value | None
    versus: str | None
    speedup: Estimate | None
    memory_bytes: int | None  # above the other row's; negative: saved
    reason: str


def changed(row: Measurement, baseline: Measurement | None) -> Configuration:
    """The toggles in which the row differs from the baseline, in its configuration's order."""
    base = baseline.configuration if baseline else {}
    return {name: value for name, value in row.configuration.items() if base.get(name) != value}


def shown(row: Measurement, baseline: Measurement | None) -> Configuration:
    """The toggles that name a row: those that differ from the baseline and, in a sweep, the swept one."""
    swept = {role.toggle: row.configuration[role.toggle] for role in row.roles if role.kind == "sweep" and role.toggle}
    return {**swept, **changed(row, baseline)}


def effects(speedups: Speedups) -> list[ToggleEffect]:
    """All effects: techniques alone against the baseline, then each rung of the ladder against the one below.

    A technique that needs another toggle's value is compared with the row that has only what it needs.
    """
    report = speedups.report
    found = [
        _effect(row, _without(row, role.toggle, report), "alone", role.toggle, speedups)
        for row in report.measurements
        for role in row.roles
        if role.kind == "alone" and role.toggle
    ]
    below = report.baseline
    for row, toggle in ladder(report):
        found.append(_effect(row, below, "ladder", toggle, speedups))
        if gate(row) is None:  # nothing is compared with a rung that failed
            below = row
    return found


def _without(row: Measurement, toggle: str, report: Report) -> Measurement | None:
    baseline = report.baseline
    if baseline is None or toggle not in baseline.configuration:
        return baseline
    rest = {**row.configuration, toggle: baseline.configuration[toggle]}
    same = (each for each in report.measurements if each.configuration == rest and not each.is_control)
    return next(same, baseline)


def ladder(report: Report) -> list[tuple[Measurement, str]]:
    """The rungs in order, each with the technique it adds."""
    rungs = [
        (role.step, row, role.toggle)
        for row in report.measurements
        for role in row.roles
        if role.kind == "ladder" and role.toggle and role.step is not None
    ]
    return [(row, toggle) for _, row, toggle in sorted(rungs, key=lambda rung: rung[0])]


def _effect(
    row: Measurement, versus: Measurement | None, scope: Literal["alone", "ladder"], toggle: str, speedups: Speedups
) -> ToggleEffect:
    invalid = versus is None or gate(versus) is not None
    reason = gate(row) or ("there is no valid row to compare with" if invalid else "")
    comparable = None if reason else versus
    return ToggleEffect(
        scope=scope,
        toggle=toggle,
        value=row.configuration.get(toggle),
        versus=versus.id if versus else None,
        speedup=speedups.of(row, comparable) if comparable else None,
        memory_bytes=memory_difference(row, comparable, speedups.report.device.kind) if comparable else None,
        reason=reason,
    )


def memory_difference(row: Measurement, versus: Measurement, kind: str) -> int | None:
    """The row's peak minus the other's, in bytes; None where either was not measured, or grows with every step."""
    mine, theirs = peak_bytes(row, kind), peak_bytes(versus, kind)
    return None if mine is None or theirs is None or grows(row) or grows(versus) else mine - theirs


def compile_difference(row: Measurement, versus: Measurement) -> float | None:
    """The row's first call minus the other's, in seconds; None where either was not measured."""
    if row.compile_time_s is None or versus.compile_time_s is None:
        return None
    return row.compile_time_s - versus.compile_time_s


def payback_iterations(row: Measurement, versus: Measurement, speedups: Speedups) -> float | None:
    """Steps after which the row's longer first call pays off; 0 where it is not longer.

    None where it never pays off, because the row is not faster, and where it was not measured.
    """
    gain, extra = speedups.of(row, versus), compile_difference(row, versus)
    if gain is None or extra is None or row.latency_s is None or gain.ratio <= 1:
        return None
    # Per step of the row, against the same items in the other one.
    return max(extra, 0.0) / (row.latency_s.median * (gain.ratio - 1))
