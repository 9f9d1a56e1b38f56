"""What any machine tells alike of a row against its baseline: status, output quality, graph breaks, memory, compiling.

These gate by themselves. A figure that was there before and is not any more is `inconclusive`, so that nothing passes
by not being measured.
"""

from __future__ import annotations

from gpubench.analysis.peak_memory import RESOLUTION_BYTES, gated_bytes
from gpubench.regression.verdicts import Finding, Limits, Metric, Verdict
from gpubench.report.model import Measurement
from gpubench.stats.processes import DISTURBED
from gpubench.units import format_bytes, significant

SMALL_ERROR = 1e-5  # relative error of outputs: below it, sums in another order explain any change


def gates(old: Measurement, new: Measurement, kind: str, limits: Limits, *, by_item: bool = False) -> list[Finding]:
    """Status; and where both rows are ok: output quality, graph breaks, memory and compile time.

    by_item: the rows' steps may be over unlike numbers of items, so that what a whole step takes is not compared.
    """
    found = [status(old, new)]
    if old.status == "ok" and new.status == "ok":
        found += [quality(old, new, limits), graph_breaks(old, new), compile_time(old, new, limits)]
        if by_item and old.items_per_step != new.items_per_step:
            reason = f"A step is over {new.items_per_step} items, it was over {old.items_per_step}."
            found.append(Finding(metric="peak_memory", verdict="incomparable", reason=reason))
        else:
            found.append(memory(old, new, kind, limits))
    return found


def status(old: Measurement, new: Measurement) -> Finding:
    """Whether the row still runs."""
    if old.status == new.status:
        return Finding(metric="status", verdict="unchanged", reason=f"It is {new.status}, as before.")
    words = f"It was {old.status} and is {new.status}{f': {new.reason}' if new.reason else '.'}"
    if old.status == "ok":
        return Finding(metric="status", verdict="regressed", reason=words)
    if new.status == "ok" and any(flag.startswith("unreliable:") for flag in old.flags):
        # It ran, and failed in a later process, perhaps by what the other one did: nothing was compared.
        return Finding(metric="status", verdict="inconclusive", reason=words)
    if new.status == "ok":
        return Finding(metric="status", verdict="improved", reason=words)
    return Finding(metric="status", verdict="unchanged", reason=words)


def quality(old: Measurement, new: Measurement, limits: Limits) -> Finding:
    """Whether the outputs are as near to the reference as they were."""
    before = old.quality.relative_error if old.quality else None
    after = new.quality.relative_error if new.quality else None
    if old.quality and old.quality.passed and not (new.quality and new.quality.passed):
        why = (new.quality.reason if new.quality else "") or "no comparison was recorded"
        return Finding(metric="quality", verdict="regressed", reason=f"Outputs were right before, and now: {why}.")
    if before is None or after is None:
        return unmeasured("quality", before, after, "the outputs' error")
    return Finding(
        metric="quality",
        verdict=grown(before, after, limits.error_growth) if max(before, after) > SMALL_ERROR else "unchanged",
        reason=f"Relative error of the outputs {after:.1e}, was {before:.1e}.",
        baseline=before,
        current=after,
        change=change(before, after),
        limit=limits.error_growth,
    )


def graph_breaks(old: Measurement, new: Measurement) -> Finding:
    """Whether dynamo broke the graph more often."""
    before, after = old.graph_breaks, new.graph_breaks
    if before is None and after is None:
        return Finding(metric="graph_breaks", verdict="unchanged", reason="They were counted in neither.")
    if before is None or after is None:
        return unmeasured("graph_breaks", before, after, "graph breaks")
    verdict: Verdict = "regressed" if after > before else "improved" if after < before else "unchanged"
    reason = f"Graph breaks: {after}, were {before}."
    return Finding(metric="graph_breaks", verdict=verdict, reason=reason, baseline=before, current=after, limit=0.0)


def memory(old: Measurement, new: Measurement, kind: str, limits: Limits) -> Finding:
    """Whether the peak grew."""
    before, after = gated_bytes(old, kind), gated_bytes(new, kind)
    if before is None or after is None:
        return unmeasured("peak_memory", before, after, "memory")
    # The resident memory of a process has a grain of its own; torch's CUDA allocator counts every byte.
    grain = RESOLUTION_BYTES if kind == "cpu" else 0
    moved = change(before, after)
    hidden = abs(after - before) <= grain and abs(moved or 0.0) > limits.memory_growth
    within = f", which is within {format_bytes(grain)} of it" if hidden else ""
    return Finding(
        metric="peak_memory",
        verdict=grown(before, after, limits.memory_growth, grain),
        reason=f"Peak memory {format_bytes(after)}, was {format_bytes(before)}{within}.",
        baseline=before,
        current=after,
        unit="bytes",
        change=moved,
        limit=limits.memory_growth,
    )


def compile_time(old: Measurement, new: Measurement, limits: Limits) -> Finding:
    """Whether the first call got longer: one reading each, so that a disturbed one decides nothing."""
    before, after = old.compile_time_s, new.compile_time_s
    if str(new.configuration.get("compile", "off")) == "off":
        return Finding(metric="compile_time", verdict="unchanged", reason="Nothing was compiled.")
    warm = any(flag.startswith("warm_cache") for row in (old, new) for flag in row.flags)
    if before is None or after is None or warm or not before:
        return Finding(metric="compile_time", verdict="incomparable", reason="Not measured with a cold cache in both.")
    verdict = grown(before, after, limits.compile_growth)
    words = f"The first call took {significant(after)} s, before {significant(before)} s"
    if verdict != "unchanged" and (why := disturbed(old) or disturbed(new)):
        verdict, words = "inconclusive", f"{words}; {why}"
    return Finding(
        metric="compile_time",
        verdict=verdict,
        reason=f"{words}.",
        baseline=before,
        current=after,
        unit="s",
        change=change(before, after),
        limit=limits.compile_growth,
    )


def disturbed(row: Measurement) -> str:
    """The flag that says that others kept the machine busy in the row's first process, which compiled; else empty."""
    flags = row.rounds[0].flags if row.rounds else row.flags
    return next((flag for flag in flags if flag.partition(":")[0] in DISTURBED), "")


def unmeasured(metric: Metric, before: float | None, after: float | None, what: str) -> Finding:
    """That a figure is missing: it decides nothing, but where it was there before the row is not sure to be fine."""
    if before is None:
        reason = "Measured in neither." if after is None else f"It was not measured before: {what}."
        return Finding(metric=metric, verdict="incomparable", reason=reason, current=after)
    reason = f"It was measured before, and is not any more: {what}."
    return Finding(metric=metric, verdict="inconclusive", reason=reason, baseline=before)


def change(before: float, after: float) -> float | None:
    """The relative change; None from 0."""
    return after / before - 1 if before else None


def grown(before: float, after: float, limit: float, grain: float = 0.0) -> Verdict:
    """The verdict on a figure that is better the smaller it is: changes beyond the share and the grain count."""
    if abs(after - before) <= grain:
        return "unchanged"
    if after > before * (1 + limit):
        return "regressed"
    return "improved" if before > after * (1 + limit) else "unchanged"
