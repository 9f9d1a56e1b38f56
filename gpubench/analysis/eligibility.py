"""Which rows may be recommended, and why the others may not."""

from __future__ import annotations

from gpubench.analysis.peak_memory import needed_bytes
from gpubench.report.model import Measurement, Objective, Report
from gpubench.stats.processes import flagged, latest_phase, of_phase
from gpubench.units import format_bytes

# Flags that make a figure unreliable where at least half of the processes behind it carry them.
GATES = {
    "unsteady": "its speed had not settled when it was measured",
    "contaminated": "others used the machine while it was measured",
    "swapped": "its memory was being swapped while it was measured",
}
# Flags that leave the figure valid, but that users of the recommendation should know.
CAUTIONS = {
    "noisy": "its processes differ so much that small effects cannot be detected",
    "throttled": "the device was throttled by heat or power supply; those samples were discarded and taken again",
    "power_capped": "the device ran at its power limit",
    "host_bound": "the GPU waited for the host in much of each step, so the figure depends on this CPU too",
    "growing_memory": "memory grows with every step",
    "warm_cache": "its compile time is unknown",
    "partly_compiled": "only part of the model was compiled",
}

ALLOWED = " (allowed):"  # between a flag's kind and its details, where the user accepts it (--allow)
MIN_ROUNDS = 3  # processes with a spread of their own: from here on Student's factor is below 5


def find(report: Report, id: str) -> Measurement | None:
    """The row of that id, or None."""
    return next((row for row in report.measurements if row.id == id), None)


def gate(row: Measurement, *, flags: bool = True) -> str | None:
    """Why the row's speed is not reliable; None where it is.

    Args:
        flags: whether disturbances count. They do not where both sides of a comparison shared them.
    """
    if row.status != "ok":
        return f"{row.status}: {row.reason}" if row.reason else row.status
    for evidence in row.evidence:
        if evidence.took_effect is False:
            return f"{evidence.toggle}={evidence.value} took no effect: {evidence.detail}"
    for kind, meaning in GATES.items() if flags else ():
        taken = any(flag.startswith(kind + ALLOWED) for flag in row.flags)
        if flagged(row, kind) and not taken and not (kind == "unsteady" and _replicated(row)):
            return f"{meaning} ({next((flag for flag in row.flags if flag.startswith(kind)), kind)})"
    if row.latency_s is None or row.latency_s.median <= 0 or any(part.median_s <= 0 for part in row.rounds):
        return "it has no latency above 0 s"
    return None


def cautions(row: Measurement) -> list[str]:
    """What users of the row should know, as clauses with the flags that say so."""
    return [f"{CAUTIONS[kind]} ({flag})" for flag in row.flags if (kind := flag.partition(":")[0]) in CAUTIONS]


def _replicated(row: Measurement) -> bool:
    """Whether enough processes measured the row for their spread to include the unsteadiness of each."""
    return len(of_phase(row, latest_phase(row))) >= MIN_ROUNDS


def exclusion(report: Report, row: Measurement, objective: Objective, max_memory_bytes: int | None) -> str | None:
    """Why `row` must not be recommended; None where it may be."""
    quality, limit = _quality(report, row), _limit(report, row, max_memory_bytes)
    return gate(row) or quality or limit or _problem(report, row, objective)


def _quality(report: Report, row: Measurement) -> str | None:
    quality = row.quality
    if quality is not None and quality.passed is False:
        return f"its outputs are wrong: {quality.reason}"
    if row.id == report.plan.baseline:
        return None  # the others' outputs are compared with its own
    if quality is None or quality.passed is None:
        return f"its outputs were not checked: {quality.reason if quality else 'no comparison was recorded'}"
    return None


def _limit(report: Report, row: Measurement, limit: int | None) -> str | None:
    if limit is None:
        return None
    needed = needed_bytes(row, report.device.kind)
    if needed is None:
        return f"its memory was not measured, so it may not fit in {format_bytes(limit)}"
    return f"it needs {format_bytes(needed)}, above the limit of {format_bytes(limit)}" if needed > limit else None


def _problem(report: Report, row: Measurement, objective: Objective) -> str | None:
    """A step over fewer items is always shorter and smaller, so comparing it would always recommend a batch of 1."""
    baseline = find(report, report.plan.baseline)
    if objective == "fps" or baseline is None or row.items_per_step == baseline.items_per_step:
        return None
    return (
        f"its step has {row.items_per_step} items, the baseline's {baseline.items_per_step}; for the objective "
        f"{objective} only equal steps are compared, or the smallest batch would always win"
    )
