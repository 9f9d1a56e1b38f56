"""What is compared without statistics: status, and each gated metric that has one figure a row.

A figure that was there before and is missing now is `inconclusive`, so that nothing passes by not being measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from msgspec import structs

from gpubench.analysis.peak_memory import RESOLUTION_BYTES, counted_exactly
from gpubench.analysis.table import Row
from gpubench.flags import UNRELIABLE, WARM_CACHE
from gpubench.hardware.facts import Device
from gpubench.metrics import Metric, gated
from gpubench.regression.comparability import differences
from gpubench.regression.verdicts import Finding, Limits, Verdict
from gpubench.report.model import Measurement, Report
from gpubench.text import clause, plural, sentence
from gpubench.toggles.traits import compiles, picks_by_time
from gpubench.units import format_bytes

# Fields of `comparability` that do not decide which operators a step calls; of the device see `_machine`.
NO_OTHER_OPERATORS = (
    "device", "uuid", "power_limit", "mig", "driver", "compiler", "libc", "command", "protocol"
)  # fmt: skip
# Of a GPU's memory torch counts the blocks that it gives, which are up to 1 MiB larger than what was asked for,
# depending on what earlier steps left free.
BLOCKS_SHARE = 0.02
SMALL_ERROR = 1e-5  # relative error of outputs: below it, sums in another order explain any change


@dataclass(frozen=True)
class RowPair:
    """A row in both reports."""

    old: Measurement
    new: Measurement
    baseline: Report
    current: Report
    by_item: bool  # the rows' steps may be over unlike numbers of items, so that whole steps are not compared


def gates(pair: RowPair, limits: Limits) -> list[Finding]:
    """Status; and where both rows are ok, every gated metric that needs no statistics."""
    findings = [status(pair.old, pair.new)]
    unlike = other_software(pair.baseline, pair.current)
    if pair.old.status == pair.new.status == "ok":
        for metric in (each for each in gated() if each.statistic is None):
            why = _why_inexact(metric, pair, unlike)
            found = _not_compared(metric, pair, why) if why else judge(metric, pair, limits)
            if not metric.exact or found.verdict != "incomparable" or (found.baseline, found.current) != (None, None):
                findings.append(found)  # what exists on other devices only, or in newer reports, is not worth a word
    return findings


def other_software(baseline: Report, current: Report) -> str:
    """How the two runs differ in what decides on the operators of a step; empty where they do not."""
    found = [str(each) for each in differences(baseline, current) if each.field not in NO_OTHER_OPERATORS]
    if baseline.tool.version != current.tool.version:
        found.append(f"gpubench: {baseline.tool.version} against {current.tool.version}")
    one, other = (_machine(report.device) for report in (baseline, current))
    if one != other:
        found.append(f"device: {baseline.device.name} against {current.device.name}")
    return ", ".join(found)


def _machine(device: Device) -> tuple[object, ...]:
    """What torch looks at to choose operators: of a CPU its instructions, of a GPU the model."""
    return (device.kind, sorted(device.instruction_sets) if device.kind == "cpu" else device.name)


def _why_inexact(metric: Metric, pair: RowPair, unlike: str) -> str:
    """Why an exact metric need not repeat in this pair, as a clause; `unlike`: how the software differs, if so."""
    if metric.exact and unlike:
        return f"it repeats exactly only where all is the same, and these differ: {unlike}"
    if metric.by_kernels and (picks_by_time(pair.old.configuration) or picks_by_time(pair.new.configuration)):
        return "kernels were picked by timing them, so that identical processes may run others"
    return ""


def _not_compared(metric: Metric, pair: RowPair, why: str) -> Finding:
    reason = f"Not compared: {why}."
    read = metric.read
    before, after = read(pair.baseline, Row(pair.old)), read(pair.current, Row(pair.new))
    return Finding(metric=metric.name, verdict="incomparable", reason=reason, baseline=before, current=after)


def status(old: Measurement, new: Measurement) -> Finding:
    """Whether the row still runs."""
    verdict: Verdict = "unchanged"
    reason = sentence(f"It was {old.status} and is {new.status}{f': {new.reason}' if new.reason else ''}")
    if old.status == new.status:
        reason = f"It is {new.status}, as before."
    elif old.status == "ok":
        verdict = "regressed"
    elif new.status == "ok":
        # Unreliable: it ran, and failed in a later process, perhaps by what the other one did. Nothing was compared.
        unreliable = any(flag.kind == UNRELIABLE.name for flag in old.flags)
        verdict = "inconclusive" if unreliable else "improved"
    return Finding(metric="status", verdict=verdict, reason=reason)


def judge(metric: Metric, pair: RowPair, limits: Limits) -> Finding:
    """The finding on a metric: by its own rule where that applies, else by its two figures."""
    override, refine = RULES.get(metric.name, (None, None))
    if override and (ruling := override(pair)):
        verdict, reason = ruling
        return Finding(metric=metric.name, verdict=verdict, reason=reason)
    read = metric.compared or metric.read
    before, after = read(pair.baseline, Row(pair.old)), read(pair.current, Row(pair.new))
    if before is None:
        reason = "Not measured in either." if after is None else "Not measured before."
        return Finding(metric=metric.name, verdict="incomparable", reason=reason, current=after)
    if after is None:
        reason = "Measured before, missing now."
        return Finding(metric=metric.name, verdict="inconclusive", reason=reason, baseline=before)
    limit = limits.share(metric, pair.current.device.kind)
    words = metric.title[0].upper() + metric.title[1:]
    words = f"{words} {metric.quantity(after)}, was {metric.quantity(before)}."
    if metric.exact and before != after:
        words = f"{metric.exact(after - before)}: {metric.quantity(after)}, was {metric.quantity(before)}."
    finding = Finding(
        metric=metric.name,
        verdict=moved(before, after, limit, metric.better),
        reason=words,
        baseline=before,
        current=after,
        unit=metric.unit,
        change=after / before - 1 if before else None,
        limit=limit,
    )
    return refine(pair, finding) if refine else finding


def moved(before: float, after: float, limit: float, better: str | None) -> Verdict:
    """The verdict on a change of more than the share `limit`; where no direction is better, either one is worse."""
    if better == "higher":
        before, after = after, before
    if after > before * (1 + limit):
        return "regressed"
    if before > after * (1 + limit):
        return "improved" if better else "regressed"
    return "unchanged"


# ----- rules of single metrics


def _outputs_wrong(pair: RowPair) -> tuple[Verdict, str] | None:
    old, new = pair.old.quality, pair.new.quality
    if old and old.passed and not (new and new.passed):
        why = (new.reason if new else "") or "no comparison was recorded"
        return "regressed", sentence(f"Outputs were right before; now: {why}")
    return None


def _ignore_small_error(pair: RowPair, finding: Finding) -> Finding:
    small = max(finding.baseline or 0.0, finding.current or 0.0) <= SMALL_ERROR
    return structs.replace(finding, verdict="unchanged") if small else finding


def _no_graph(pair: RowPair) -> tuple[Verdict, str] | None:
    if pair.old.graph_breaks is None and pair.new.graph_breaks is None:
        return "unchanged", "Nothing was compiled in either."
    return None


def _unlike_steps(pair: RowPair) -> tuple[Verdict, str] | None:
    if pair.by_item and pair.old.items_per_step != pair.new.items_per_step:
        return (
            "incomparable",
            f"{plural(pair.new.items_per_step or 0, 'item')} per step, {pair.old.items_per_step} before.",
        )
    return None


def _ignore_small_memory(pair: RowPair, finding: Finding) -> Finding:
    """Identical processes differ by so much, but where torch's CUDA allocator counts every byte."""
    apart = abs((finding.current or 0.0) - (finding.baseline or 0.0))
    exact = counted_exactly(pair.new, pair.current.device.kind)
    if exact or finding.verdict == "unchanged" or apart > RESOLUTION_BYTES:
        return finding
    within = f", within the {format_bytes(RESOLUTION_BYTES)} by which identical processes differ."
    return structs.replace(finding, verdict="unchanged", reason=clause(finding.reason) + within)


def _ignore_block_sizes(pair: RowPair, finding: Finding) -> Finding:
    if pair.current.device.kind != "cuda" or abs(finding.change or 0.0) > BLOCKS_SHARE:
        return finding
    if finding.verdict == "unchanged" or not finding.change:  # from nothing to something is no matter of blocks
        return finding
    within = f", within the {BLOCKS_SHARE:.0%} by which the blocks of torch's allocator may differ."
    return structs.replace(finding, verdict="unchanged", reason=clause(finding.reason) + within)


def _no_cold_compile(pair: RowPair) -> tuple[Verdict, str] | None:
    if not compiles(pair.new.configuration):
        return "unchanged", "Nothing was compiled."
    warm = any(flag.kind == WARM_CACHE.name for row in (pair.old, pair.new) for flag in row.flags)
    if warm or not pair.old.compile_time_s or pair.new.compile_time_s is None:
        return "incomparable", "Not measured with a cold compile cache in both."
    return None


def _doubt_disturbed(pair: RowPair, finding: Finding) -> Finding:
    """The first call is timed only once, so a disturbance of the process that compiled leaves it open."""
    first = (row.rounds[0].flags if row.rounds else row.flags for row in (pair.old, pair.new))
    why = next((str(flag) for flags in first for flag in flags if flag.disturbs), "")
    if finding.verdict == "unchanged" or not why:
        return finding
    return structs.replace(finding, verdict="inconclusive", reason=f"{clause(finding.reason)}; {why}.")


Override = Callable[[RowPair], tuple[Verdict, str] | None]
Refinement = Callable[[RowPair, Finding], Finding]
RULES: dict[str, tuple[Override | None, Refinement | None]] = {
    "quality": (_outputs_wrong, _ignore_small_error),
    "graph_breaks": (_no_graph, None),
    "peak_memory": (_unlike_steps, _ignore_small_memory),
    "bytes_allocated": (None, _ignore_block_sizes),
    "compile_time": (_no_cold_compile, _doubt_disturbed),
}
