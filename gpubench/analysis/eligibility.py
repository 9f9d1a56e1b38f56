"""Which rows may be recommended, and why the others may not."""

from __future__ import annotations

from gpubench.analysis.peak_memory import context_bytes, grows, needed_bytes
from gpubench.flags import Flag
from gpubench.report.model import Measurement, Objective, Report
from gpubench.stats.processes import flagged, latest_phase, of_phase
from gpubench.text import clause, plural
from gpubench.units import format_bytes

MIN_ROUNDS = 3  # processes with a spread of their own: from here on Student's factor is below 5


def gate(row: Measurement, *, flags: bool = True) -> str | None:
    """Why the row's speed is not reliable; None where it is.

    Args:
        flags: whether disturbances count. They do not where both sides of a comparison shared them.
    """
    if row.status != "ok":
        return f"{row.status}: {clause(row.reason)}" if row.reason else row.status
    for evidence in row.evidence:
        if evidence.took_effect is False:
            return f"{evidence.toggle}={evidence.value} took no effect: {clause(evidence.detail)}"
    for flag in gating(row) if flags else ():
        return f"{flag.about.meaning} ({flag})"
    if row.latency_s is None or row.latency_s.median <= 0 or any(part.median_s <= 0 for part in row.rounds):
        return "it has no latency above 0 s"
    return None


def gating(row: Measurement) -> list[Flag]:
    """The row's flags that gate it: on at least half of the processes that its figures rest on, and not allowed."""
    lists = [*(part.flags for part in row.rounds), row.flags]  # the row's own last: it says how many processes
    carried = {flag.kind: flag for flags in lists for flag in flags}
    # With enough processes their spread includes the unsteadiness of each.
    replicated = len(of_phase(row, latest_phase(row))) >= MIN_ROUNDS
    gates = [flag for flag in carried.values() if flag.effect == "gates" and flagged(row, flag.kind)]
    return [flag for flag in gates if not (flag.about.outweighed and replicated)]


def cautions(row: Measurement) -> list[str]:
    """What should be known of a row that may be recommended, as clauses with the flags that say so."""
    return [f"{flag.about.meaning} ({flag})" for flag in row.flags if flag.effect == "caution"]


def exclusion(report: Report, row: Measurement, objective: Objective, max_memory_bytes: int | None) -> str | None:
    """Why `row` must not be recommended; None where it may be."""
    quality, limit = _quality(report, row), _limit(report, row, max_memory_bytes)
    return gate(row) or quality or limit or _problem(report, row, objective)


def invalid_baseline(report: Report) -> str | None:
    """Why no row may be recommended over the baseline: it is wrong, did not run as labelled, or was disturbed.

    Any row may only look better than such a baseline. One that did not fit into memory has no figure to mislead, so
    what does fit may be recommended.
    """
    baseline = report.baseline
    if baseline is None or baseline.status == "oom":
        return None
    return gate(baseline) or _quality(report, baseline)


def _quality(report: Report, row: Measurement) -> str | None:
    quality = row.quality
    if quality is not None and quality.passed is False:
        return f"its outputs are wrong: {clause(quality.reason)}"
    if row.id == report.plan.baseline:
        return None  # the others' outputs are compared with its own
    if quality is None or quality.passed is None:
        return f"its outputs were not checked: {clause(quality.reason) if quality else 'no comparison was recorded'}"
    return None


def _limit(report: Report, row: Measurement, limit: int | None) -> str | None:
    if limit is None:
        return None
    if grows(row):
        return f"its memory grows with every step, so it outgrows {format_bytes(limit)} and any other limit"
    needed = needed_bytes(row, report.device.kind)
    if needed is None:
        return f"its memory was not measured, so it may not fit in {format_bytes(limit)}"
    if needed <= limit:
        return None
    context = context_bytes(row.memory) if row.memory and report.device.kind == "cuda" else 0
    words = f" ({format_bytes(context)} of it for the CUDA context and libraries)" if context else ""
    return f"it needs {format_bytes(needed)}{words}, above the limit of {format_bytes(limit)}"


def _problem(report: Report, row: Measurement, objective: Objective) -> str | None:
    """Why the figure that the objective ranks by says nothing of the row; None where it does.

    A step over fewer items is always shorter and smaller, so comparing it would always recommend a batch of 1.
    """
    baseline = report.baseline
    if objective == "memory" and grows(row):
        return "its memory grows with every step, so that its peak only says how many steps were measured"
    if objective == "fps" or baseline is None or row.items_per_step == baseline.items_per_step:
        return None
    items = plural(row.items_per_step or 0, "item")
    return (
        f"its step has {items}, the baseline's {baseline.items_per_step}; for the objective {objective} only "
        "equal steps are compared, or the smallest batch would always win"
    )
