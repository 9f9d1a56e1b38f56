"""Claimed against measured: a table for each guide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from gpubench.analysis.claims import MEASURED, Finding, values
from gpubench.analysis.eligibility import MIN_ROUNDS
from gpubench.analysis.guides import Claim
from gpubench.metrics import MISSING, get
from gpubench.render.document import Column, Content, Document, Note, RowGroup, TableRow, table
from gpubench.text import plural
from gpubench.units import significant

COLUMNS = (
    Column("technique", "technique", is_figure=False, folds=True),
    Column("mode", "mode", is_figure=False, width=90),
    Column("way", "measured as", is_figure=False, width=130, folds=True),
    Column("claimed", "claimed", is_figure=False),
    Column("measured", "measured", is_figure=False),
    Column("memory", "memory saved"),
    Column("verdict", "verdict", is_figure=False),
)
RULE = (
    "measured: the speed-up (95 % interval, rounds). confirmed: that interval and what is claimed overlap; a single "
    "figure counts as rounded to 5 %, and the gain must be sure. below, above: it lies wholly there."
)
WORDS = {
    "faster": "faster",
    "less_memory": "less memory",
    "same_speed": "costs nothing",
    "right_outputs": "right outputs",
    "less": "less",
}


def claims_content(found: Mapping[str, Sequence[Finding]]) -> Content:
    """The findings of `analysis.claims` on each device, by its name."""
    return Content(
        "claims",
        lambda: [document for device, findings in found.items() for document in documents(findings, device)],
        lambda: [{"device": device, **record(each)} for device, findings in found.items() for each in findings],
    )


def documents(found: Sequence[Finding], device: str) -> list[Document]:
    """A table for each guide with a note on each row that has no figure, and one line with the count of verdicts."""
    made = []
    for guide, group in groupby(found, lambda finding: finding.guide):
        members = list(group)
        where = f"measured on {device}" + (f"; the guide's figures are of {guide.hardware}" if guide.hardware else "")
        shown = table(COLUMNS, [RowGroup(tuple(map(_row, members)))])
        made.append(Document(f"{guide.name}: {guide.title}", (where,), shown, tuple(map(Note, _sentences(members)))))
    return [*made, Document("", (summary(found), RULE))]


def summary(found: Sequence[Finding]) -> str:
    """`65 claims: 30 measured (12 confirmed, ...), 35 not`; one with several ways counts once, by its best."""
    order: list[str] = [*MEASURED, "not measured", "not measurable here"]
    best: dict[tuple[str, str], str] = {}
    for finding in found:
        key = finding.guide.name, finding.claim.id
        best[key] = min(best.get(key, finding.verdict), finding.verdict, key=order.index)
    count = {verdict: list(best.values()).count(verdict) for verdict in dict.fromkeys(best.values())}
    words = ", ".join(f"{number} {verdict}" for verdict, number in sorted(count.items(), key=lambda item: -item[1]))
    return f"{plural(len(best), 'claim')}: {words}."


def _row(finding: Finding) -> TableRow:
    claim, way = finding.claim, finding.measure
    cells = {
        "technique": claim.technique,
        "mode": finding.mode,
        "way": _way(finding) if way else MISSING,
        "claimed": claimed(claim, way.expects if way else None),
        "measured": measured(finding),
        "memory": MISSING if finding.memory_saved is None else f"{100 * finding.memory_saved:.0f} %",
        "verdict": finding.verdict,
    }
    return TableRow(cells, "" if finding.verdict == "confirmed" else finding.verdict)


def _sentences(members: Sequence[Finding]) -> list[str]:
    """What must be known beside the table, each sentence once with the techniques that it is of."""
    said: dict[str, list[str]] = {}
    for finding in members:
        claim, way = finding.claim, finding.measure
        texts = [finding.reason]
        texts += [f"{way.note}." if way and way.note and finding.verdict in MEASURED else ""]
        texts += [f"a known mistake of the guide: {claim.correction}" if claim.correction else ""]
        for text in filter(None, texts):
            names = said.setdefault(text, [])
            names += [claim.technique] if claim.technique not in names else []
    return [f"{', '.join(names)}: {text}" for text, names in said.items()]


def _way(finding: Finding) -> str:
    way = finding.measure
    assert way is not None
    versus = f" against {values(way.off)}" if way.off else ""
    where = " ".join(filter(None, (way.workload, finding.size, values({**way.parameters, **way.fix}))))
    return f"{values(way.on) or 'baseline'}{versus}, {where}"


def claimed(claim: Claim, expects: str | None = None) -> str:
    """`1.1-1.3x`, `up to 8x`, `10-15 % less memory`, or in a word what a claim without a figure says."""
    parts = []
    if claim.speedup_high is not None:
        low, high = claim.speedup_low, claim.speedup_high
        parts.append(f"up to {high:g}x" if low is None else f"{high:g}x" if low == high else f"{low:g}-{high:g}x")
    if claim.memory_high is not None and claim.memory_low is not None:
        shares = list(dict.fromkeys(f"{100 * share:g}" for share in (claim.memory_low, claim.memory_high)))
        parts.append(f"{'-'.join(shares)} % less memory")
    word = WORDS.get(expects or claim.expects or "", "")
    return ", ".join(parts) or word or "no figure"


def measured(finding: Finding) -> str:
    """`1.04x (0.98-1.10, 5)`, or the metric's value; `-` where there is none."""
    if finding.measure and finding.measure.metric and finding.value is not None:
        metric = get(finding.measure.metric)
        versus = (
            "" if finding.versus is None or not finding.measure.off else f" against {metric.quantity(finding.versus)}"
        )
        return f"{metric.quantity(finding.value)}{versus}"
    estimate = finding.speedup
    if estimate is None:
        return MISSING
    if estimate.rounds < MIN_ROUNDS:
        return f"~{significant(estimate.ratio)}x"
    return (
        f"{significant(estimate.ratio)}x ({significant(estimate.low)}-{significant(estimate.high)}, {estimate.rounds})"
    )


def record(finding: Finding) -> dict[str, Any]:
    """A finding as plain data."""
    claim, way, estimate = finding.claim, finding.measure, finding.speedup
    return {
        "guide": finding.guide.name,
        "id": claim.id,
        "technique": claim.technique,
        "mode": finding.mode,
        "statement": claim.statement or None,
        "claimed": claimed(claim, way.expects if way else None),
        "claimed_speedup": None if claim.speedup_high is None else [claim.speedup_low, claim.speedup_high],
        "claimed_memory_saved": None if claim.memory_high is None else [claim.memory_low, claim.memory_high],
        "claimed_on": claim.hardware or finding.guide.hardware or None,
        "correction": claim.correction or None,
        "verdict": finding.verdict,
        "reason": finding.reason or None,
        "workload": way.workload if way else None,
        "size": finding.size or None,
        "parameters": way.parameters if way else None,
        "fix": way.fix if way else None,
        "on": way.on if way else None,
        "off": way.off if way else None,
        "note": (way.note or None) if way else None,
        "report": finding.report or None,
        "row": finding.on or None,
        "versus": finding.off or None,
        "speedup": estimate.ratio if estimate else None,
        "speedup_low": estimate.low if estimate and estimate.rounds >= MIN_ROUNDS else None,
        "speedup_high": estimate.high if estimate and estimate.rounds >= MIN_ROUNDS else None,
        "rounds": estimate.rounds if estimate else None,
        "memory_saved": finding.memory_saved,
        "metric": (way.metric or None) if way else None,
        "value": finding.value,
        "value_versus": finding.versus,
    }
