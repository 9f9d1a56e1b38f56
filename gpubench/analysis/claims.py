"""What guides claim against what reports measured: one finding for each claim, mode and way to measure it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from gpubench.analysis.eligibility import gate
from gpubench.analysis.groups import when
from gpubench.analysis.guides import Claim, Expectation, Guide, Measure
from gpubench.analysis.peak_memory import RESOLUTION_BYTES, gated_bytes
from gpubench.analysis.speedup import Speedups
from gpubench.analysis.table import Row
from gpubench.errors import GpubenchError
from gpubench.metrics import get as get_metric
from gpubench.report.model import Configuration, Measurement, Report, Value
from gpubench.search.requested import value_of
from gpubench.search.space import Builder
from gpubench.stats.estimate import Estimate
from gpubench.text import clause
from gpubench.toggles import with_own
from gpubench.toggles.own import stand_in
from gpubench.toggles.toggle import Scope
from gpubench.workloads.catalog import default_parameters
from gpubench.workloads.workload_facts import Mode

Verdict = Literal["confirmed", "below", "above", "not measurable here", "not measured"]

# A guide that gives one figure has rounded it: what is within this share of it is the same.
ROUNDED = 0.05
UNCERTAIN = "The interval holds what is claimed and no gain as well: more --rounds, or a quieter machine, would tell."
# "Costs nothing": no interval below this is free.
FREE = 0.98


@dataclass(frozen=True)
class Finding:
    """One claim in one mode, measured in one way. Without a figure `reason` says why."""

    guide: Guide
    claim: Claim
    mode: Mode
    verdict: Verdict
    measure: Measure | None = None
    reason: str = ""
    report: str = ""  # where it was read from
    size: str = ""  # of the workload
    on: str = ""  # id of the row
    off: str = ""
    speedup: Estimate | None = None
    memory_saved: float | None = None  # share of the peak, below 0 where more was used
    value: float | None = None  # of the metric, where the claim is about one
    versus: float | None = None  # the same of `off`


Source = tuple[str, Report]


def findings(claims: Iterable[tuple[Guide, Claim]], sources: Sequence[Source], device_kind: str) -> list[Finding]:
    """At least one finding for each claim. Reports, each with its name, are of one device; the newest come first."""
    ordered = sorted(sources, key=lambda source: -when(source[1]))
    found = []
    for guide, claim in claims:
        for mode in claim.modes:
            ways = [each for each in claim.measure if mode in each.modes and device_kind in each.devices]
            found += [_of(guide, claim, mode, way, ordered) for way in ways] or [
                Finding(guide, claim, mode, "not measurable here", reason=claim.unmeasured or _elsewhere(claim))
            ]
    return found


def _elsewhere(claim: Claim) -> str:
    kinds = sorted({kind.upper() for each in claim.measure for kind in each.devices})
    return f"It is measured on a {' or '.join(kinds)} device."


def _of(guide: Guide, claim: Claim, mode: Mode, way: Measure, sources: Sequence[Source]) -> Finding:
    about = [source for source in sources if _is_about(source[1], way, mode)]
    if not about:
        parameters = "".join(f", {name}={value}" for name, value in way.parameters.items())
        reason = f"No report of {way.workload} {mode}{parameters} was given."
        return Finding(guide, claim, mode, "not measured", way, reason)
    tried = [_read(guide, claim, mode, way, source) for source in about]
    # The newest that measured it, whatever it says; else why the newest could not.
    return next((finding for finding in tried if finding.verdict in MEASURED), tried[0])


MEASURED: tuple[Verdict, ...] = ("confirmed", "below", "above")


def _is_about(report: Report, way: Measure, mode: Mode) -> bool:
    workload = report.workload
    given = {name: str(value) for name, value in workload.parameters.items()}
    asked = {**default_parameters(way.workload), **way.parameters}
    wanted = {name: str(value) for name, value in asked.items()}
    return (workload.reference, workload.mode, given) == (way.workload, mode, wanted)


def sides(way: Measure, report: Report) -> tuple[Configuration, Configuration] | str:
    """The configurations `on` and `off` on the report's device, or the sentence why one cannot be there."""
    scope = Scope.of(report.device, report.workload, report.environment)
    with with_own(map(stand_in, report.workload.toggles)):
        try:
            builder = Builder(scope, {name: value_of(name, str(value), scope) for name, value in way.fix.items()})
            found = []
            for changes in (way.on, way.off):
                for name in changes:
                    builder.require(name)
                values = {name: value_of(name, str(value), scope) for name, value in changes.items()}
                candidate = builder.plan(values)
                if candidate.skip:
                    return f"{candidate.skip}."
                found.append(candidate.configuration)
        except GpubenchError as error:
            return error.message
    return found[0], found[1]


def _read(guide: Guide, claim: Claim, mode: Mode, way: Measure, source: Source) -> Finding:
    name, report = source
    here = Finding(guide, claim, mode, "not measurable here", way, report=name, size=report.workload.size)
    both = sides(way, report)
    if isinstance(both, str):
        return replace(here, reason=both)
    if both[0] == both[1] and not way.metric:
        return replace(here, reason="Both sides are the same here: the baseline has it already.")
    rows = [_row(report, configuration) for configuration in both]
    if rows[0] is None or rows[1] is None:
        return replace(here, verdict="not measured", reason="The report has no row of one of the sides.")
    on, off = rows[0], rows[1]
    here = replace(here, on=on.id, off=off.id)
    for row in (on, off):
        if problem := gate(row):
            if row.status == "wrong" and _expectation(claim, way) == "right_outputs":
                return replace(here, verdict="below", reason=f"{row.id}: {clause(problem)}.")
            verdict: Verdict = (
                "not measured" if row.status == "ok" else "not measurable here"
            )  # disturbed, or cannot be
            return replace(here, verdict=verdict, reason=f"{row.id}: {clause(problem)}.")
    return _judged(here, claim, way, report, on, off)


def has_rows(way: Measure, report: Report) -> bool:
    """Whether the report has a row of each side of `way`, or says why there can be none."""
    both = sides(way, report)
    return isinstance(both, str) or all(_row(report, configuration) for configuration in both)


def _row(report: Report, configuration: Configuration) -> Measurement | None:
    """The row that ran `configuration`; a toggle that its gpubench did not know yet was at its baseline."""
    scope = Scope.of(report.device, report.workload, report.environment)
    with with_own(map(stand_in, report.workload.toggles)):
        defaults = Builder(scope).defaults
    for row in report.measurements:
        if not row.is_control and {**defaults, **row.configuration} == {**defaults, **configuration}:
            return row
    return None


def _judged(here: Finding, claim: Claim, way: Measure, report: Report, on: Measurement, off: Measurement) -> Finding:
    expects = _expectation(claim, way)
    if way.metric:
        value, versus = (get_metric(way.metric).value(report, Row(row)) for row in (on, off))
        here = replace(here, value=value, versus=versus)
        if expects == "right_outputs":
            return replace(here, verdict="confirmed")
        if value is None or (expects == "less" and versus is None):
            return replace(here, reason=f"The row has no {get_metric(way.metric).title}.")
        good = value < versus if expects == "less" and versus is not None else value >= (way.at_least or 0)
        return replace(here, verdict="confirmed" if good else "below")
    speedup, saved = Speedups(report).of(on, off), _saved(report, on, off)
    here = replace(here, speedup=speedup, memory_saved=saved)
    verdicts: list[Verdict] = []
    if claim.speedup_high is not None or expects in ("faster", "same_speed"):
        if speedup is None:
            return replace(here, reason="The rows have no speed that can be compared.")
        verdicts.append(_of_speed(claim, expects, speedup))
        claimed = claimed_speed(claim)
        if verdicts[-1] == "confirmed" and claimed and claimed[0] > 1 >= speedup.low:
            return replace(here, verdict="not measured", reason=UNCERTAIN)
    if claim.memory_high is not None or expects == "less_memory":
        if saved is None:
            return replace(here, reason="The rows have no memory that can be compared.")
        verdicts.append(_of_memory(claim, saved, report, on))
    return replace(here, verdict=min(verdicts, key=("below", "above", "confirmed").index))


def _expectation(claim: Claim, way: Measure) -> Expectation | None:
    return way.expects or claim.expects


def claimed_speed(claim: Claim) -> tuple[float, float] | None:
    """The speed-ups that a claim with figures covers; a single figure as wide as it was rounded."""
    if claim.speedup_high is None:
        return None
    return _range(1.0 if claim.speedup_low is None else claim.speedup_low, claim.speedup_high)


def claimed_memory(claim: Claim) -> tuple[float, float] | None:
    """The same of the share of memory that is saved."""
    if claim.memory_low is None or claim.memory_high is None:
        return None
    return _range(claim.memory_low, claim.memory_high)


def _range(low: float, high: float) -> tuple[float, float]:
    return (low * (1 - ROUNDED), high * (1 + ROUNDED)) if low == high else (low, high)


def _of_speed(claim: Claim, expects: Expectation | None, speedup: Estimate) -> Verdict:
    """ "confirmed" where the interval and what is claimed overlap; without a figure, where it is above 1."""
    claimed = claimed_speed(claim)
    if claimed is None:
        fine = speedup.high >= FREE if expects == "same_speed" else speedup.low > 1
        return "confirmed" if fine else "below"
    if claim.speedup_low is None and speedup.low <= 1:  # "up to"
        return "below"
    return "below" if speedup.high < claimed[0] else "above" if speedup.low > claimed[1] else "confirmed"


def _saved(report: Report, on: Measurement, off: Measurement) -> float | None:
    used, before = (gated_bytes(row, report.device.kind) for row in (on, off))
    return None if used is None or not before else 1 - used / before


def _of_memory(claim: Claim, saved: float, report: Report, on: Measurement) -> Verdict:
    claimed = claimed_memory(claim)
    if claimed is None:
        used = gated_bytes(on, report.device.kind) or 0
        return "confirmed" if saved * used / (1 - saved) > RESOLUTION_BYTES else "below"
    return "below" if saved < claimed[0] else "above" if saved > claimed[1] else "confirmed"


def values(changes: Mapping[str, Value]) -> str:
    """`compile=default, precision=bf16-autocast`."""
    return ", ".join(f"{name}={value}" for name, value in changes.items())
