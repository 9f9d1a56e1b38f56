"""Checks as documents: the rows worst first, and a sentence for each finding that is not `unchanged`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from gpubench.analysis.peak_memory import RESOLUTION_BYTES
from gpubench.metrics import MISSING, gated, get
from gpubench.regression.verdicts import SEVERITY, Check, Finding, RowCheck, Verdict
from gpubench.render.document import Column, Content, Document, Note, RowGroup, TableRow, table
from gpubench.text import plural
from gpubench.units import format_bytes, format_percent

LONGEST = 100  # rows on a terminal; of 1,000 nobody reads the last, and laying them out takes longer than deciding
FOLDED: tuple[Verdict, ...] = ("unchanged", "incomparable")
TIME, MEMORY = "fps", "peak_memory"  # the metrics with columns; every other one is told in sentences


def checks_content(checks: Sequence[Check], inconclusive_ok: bool = False) -> Content:
    """The checks; inconclusive_ok: what could not be told is no error."""
    tolerated = ("inconclusive",) if inconclusive_ok else ()
    return Content("check", lambda: [check_document(check, tolerated) for check in checks], lambda: list(checks))


def check_document(check: Check, tolerated: tuple[str, ...] = ()) -> Document:
    """Headline, what was compared with what, the rows, and what could not be told."""
    rows = sorted(check.rows, key=lambda row: (SEVERITY.index(row.verdict), -_slowdown(row)))
    folds = [(verdict, [row for row in rows if row.verdict == verdict]) for verdict in FOLDED]
    groups = [
        RowGroup(tuple(_row(row) for row in rows if row.verdict not in FOLDED)),
        *(RowGroup(tuple(map(_row, some)), f"{plural(len(some), 'row')} {verdict}", True) for verdict, some in folds),
    ]
    columns = [
        Column("verdict", "verdict", is_figure=False),
        Column("row", "row", is_figure=False, folds=True),
        Column("before", f"{get(TIME).title} before", width=90),
        Column("now", "now", width=50),
        Column("change", "change"),
        Column("interval", "interval", width=120),
        Column("detectable", "detectable", width=50),
        Column("memory", get(MEMORY).heading, width=90),
    ]
    how = "measured in the same interleaved rounds" if check.paired else "measured in two runs"
    return Document(
        title=_headline(check),
        subtitle=(f"{check.current} against {check.baseline}, {how}",),
        table=table(columns, groups, LONGEST),
        notes=(*_undecided(check), *map(Note, _remarks(check))),
        status=check.verdict,
        about=(check.workload, check.mode, check.device),
        tolerated=tolerated,
    )


def percent(value: float | None, sign: bool = True) -> str:
    """As `units.format_percent`, and `-` for what is not known."""
    return MISSING if value is None else format_percent(value, sign=sign)


def _headline(check: Check) -> str:
    """`resnet50 inference on AMD EPYC: regressed (13 rows: 1 regressed, 12 unchanged)`."""
    counts = Counter(row.verdict for row in check.rows)
    words = [f"{counts[verdict]} {verdict}" for verdict in SEVERITY if counts[verdict]]
    rows = f" ({plural(len(check.rows), 'row')}: {', '.join(words)})" if words else ""
    return f"{check.workload} {check.mode} on {check.device}: {check.verdict}{rows}"


def _remarks(check: Check) -> list[str]:
    """Notes on the check as a whole."""
    texts = []
    refused = [text for text in check.differences if text.partition(":")[0] not in check.allowed]
    if check.verdict == "incomparable" and refused and not check.rows:
        fields = dict.fromkeys(text.partition(":")[0] for text in refused)
        texts.append(f"Not comparable, these differ: {'; '.join(refused)}.")
        options = " ".join(f"--allow-different {name}" for name in fields)
        texts.append(f"To compare anyway: {options}.")
    elif check.differences:
        texts.append(f"Compared although these differ: {'; '.join(check.differences)}.")
    memory = {row.id: _finding(row, MEMORY) for row in check.rows}
    ignored = [
        id
        for id, finding in memory.items()
        if finding and finding.verdict == "unchanged" and abs(finding.change or 0.0) > (finding.limit or 0.0)
    ]
    if ignored:
        names, grain = ", ".join(ignored[:3]) + (", ..." if len(ignored) > 3 else ""), format_bytes(RESOLUTION_BYTES)
        texts.append(f"Memory changes within {grain}, as between identical processes, count as unchanged: {names}.")
    return [*texts, *check.notes]


def _finding(row: RowCheck, metric: str) -> Finding | None:
    return next((one for one in row.findings if one.metric == metric), None)


def _slowdown(row: RowCheck) -> float:
    time = _finding(row, TIME)
    return -(time.change or 0.0) if time else 0.0


def _row(row: RowCheck) -> TableRow:
    """A row's cells, and a sentence for each finding that is worth one, the worst first."""
    time = _finding(row, TIME) or Finding(metric=TIME, verdict="incomparable", reason="")
    memory = _finding(row, MEMORY)
    interval = MISSING
    if time.change_low is not None and time.change_high is not None:
        interval = f"{percent(time.change_low)} to {percent(time.change_high)}"
    cells = {
        "verdict": row.verdict,
        "row": row.id,
        "before": get(TIME).quantity(time.baseline),
        "now": get(TIME).quantity(time.current),
        "change": percent(time.change),
        "interval": interval,
        "detectable": percent(time.detectable, sign=False),
        "memory": percent(memory.change) if memory else MISSING,
    }
    telling = {"inconclusive", "incomparable" if row.verdict == "incomparable" else "regressed", "improved"}
    findings = sorted(row.findings, key=lambda one: SEVERITY.index(one.verdict))
    notes = (
        Note(f"{row.id}: {_title(one)} {one.verdict}: {one.reason}", one.verdict, summarized=_is_open(one))
        for one in findings
        if one.verdict in telling
    )
    return TableRow(cells, row.verdict, notes=tuple(notes))


def _title(finding: Finding) -> str:
    return "status" if finding.metric == "status" else get(finding.metric).title


def _is_open(finding: Finding) -> bool:
    """Whether more data would decide it, which is told for all rows together."""
    return finding.verdict == "inconclusive" and finding.detectable is not None


def _undecided(check: Check) -> list[Note]:
    """At most one sentence: which metrics are open for lack of data, and what decides them."""
    parts, decisive = [], False
    for metric in gated():
        members = [one for row in check.rows for one in row.findings if one.metric == metric.name and _is_open(one)]
        if not members:
            continue
        effects = sorted(one.detectable or 0.0 for one in members)
        span = " to ".join(dict.fromkeys(percent(effect, sign=False) for effect in (effects[0], effects[-1])))
        limit = percent(members[0].limit, sign=False)
        count = plural(len(members), "row")
        parts.append(f"{metric.title} in {count} (smallest detectable slowdown {span}, limit {limit})")
        decisive = decisive or metric.decisive
    if not parts:
        return []
    advice = "This alone makes no row inconclusive."
    if decisive:
        advice = "Use more --rounds and a longer --time-limit."
        if check.ab_command:
            advice = f"Two stored runs cannot tell; measure both sides together: {check.ab_command}"
    return [Note(f"Inconclusive: {', '.join(parts)}. {advice}", "inconclusive")]
