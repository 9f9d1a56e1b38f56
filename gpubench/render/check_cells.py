"""A check in words: what its table, Markdown, JUnit XML and annotations all show."""

from __future__ import annotations

from collections import Counter

from gpubench.analysis.peak_memory import RESOLUTION_BYTES
from gpubench.regression.verdicts import SEVERITY, Check, Finding, RowCheck
from gpubench.text import plural, printable
from gpubench.units import format_bytes, format_percent, significant

MISSING = "-"
METRICS = {
    "status": "status",
    "quality": "output error",
    "graph_breaks": "graph breaks",
    "peak_memory": "peak memory",
    "fps": "FPS",
    "latency_p95": "latency p95",
    "compile_time": "compile time",
}


def headline(check: Check) -> str:
    """`resnet50 inference on AMD EPYC: regressed (1 row regressed, 12 unchanged)`."""
    counts = Counter(row.verdict for row in check.rows)
    words = [f"{counts[verdict]} {verdict}" for verdict in SEVERITY if counts[verdict]]
    rows = f" ({plural(len(check.rows), 'row')}: {', '.join(words)})" if words else ""
    return printable(f"{check.workload} {check.mode} on {check.device}: {check.verdict}{rows}")


def sources(check: Check) -> str:
    """What was held against what, and how."""
    how = "measured in the same interleaved rounds" if check.paired else "measured in two runs"
    return printable(f"{check.current} against {check.baseline}, {how}")


def remarks(check: Check) -> list[str]:
    """What the reader must know beside the rows."""
    found = []
    refused = [text for text in check.differences if text.partition(":")[0] not in check.allowed]
    if check.verdict == "incomparable" and refused and not check.rows:
        fields = dict.fromkeys(text.partition(":")[0] for text in refused)
        found.append(f"Not comparable, these differ: {'; '.join(refused)}.")
        options = " ".join(f"--allow-different {name}" for name in fields)
        found.append(f"To compare all the same: {options}.")
    elif check.differences:
        found.append(f"Compared although these differ: {'; '.join(check.differences)}.")
    found += _within_grain(check)
    return [printable(text) for text in (*found, *check.notes)]


def _within_grain(check: Check) -> list[str]:
    """That memory moved by more than its limit and is `unchanged` all the same, since that little cannot be told."""
    rows = [
        row.id
        for row in check.rows
        for one in row.findings
        if one.metric == "peak_memory" and one.verdict == "unchanged" and abs(one.change or 0.0) > (one.limit or 0.0)
    ]
    if not rows:
        return []
    names = ", ".join(rows[:3]) + (", ..." if len(rows) > 3 else "")
    grain = format_bytes(RESOLUTION_BYTES)
    return [f"Peak memory within {grain}, which identical processes differ by, counts as unchanged: {names}."]


def worst_first(check: Check) -> list[RowCheck]:
    """The rows by verdict, the largest slowdown first among equals."""
    return sorted(check.rows, key=lambda row: (SEVERITY.index(row.verdict), -_slowdown(row)))


def _slowdown(row: RowCheck) -> float:
    time = finding(row, "fps")
    return -(time.change or 0.0) if time else 0.0


def finding(row: RowCheck, metric: str) -> Finding | None:
    """The row's finding on one metric; None where there is none."""
    return next((one for one in row.findings if one.metric == metric), None)


def told(row: RowCheck) -> list[Finding]:
    """The findings worth a sentence of their own: what got worse, then what got better, then what else decided."""
    wanted = ("regressed", "improved") if row.verdict != "incomparable" else ("incomparable",)
    found = [one for one in row.findings if one.verdict in wanted]
    found += [one for one in row.findings if one.verdict == "inconclusive" and one.detectable is None]
    return sorted(found, key=lambda one: SEVERITY.index(one.verdict))


def deciding(row: RowCheck) -> list[Finding]:
    """The findings that have the row's own verdict."""
    return [one for one in row.findings if one.verdict == row.verdict]


def sentence(row: RowCheck, one: Finding) -> str:
    """`precision=bf16: FPS regressed: ...`."""
    return printable(f"{row.id}: {METRICS[one.metric]} {one.verdict}: {one.reason}")


def undecided(check: Check) -> list[str]:
    """At most one sentence: which metrics are open for lack of data, and what decides them."""
    parts = {}
    for metric, name in METRICS.items():
        found = [one for row in check.rows for one in row.findings if one.metric == metric]
        open_ones = [one for one in found if one.verdict == "inconclusive" and one.detectable is not None]
        effects = sorted(one.detectable for one in open_ones if one.detectable is not None)
        if effects:
            span = " to ".join(dict.fromkeys(percent(effect, sign=False) for effect in (effects[0], effects[-1])))
            limit = percent(open_ones[0].limit, sign=False)
            count = plural(len(open_ones), "row")
            parts[metric] = f"{name} in {count} (smallest detectable slowdown {span}, limit {limit})"
    if not parts:
        return []
    advice = " This alone leaves no row inconclusive."
    if "fps" in parts:
        advice = " Use more --rounds and a longer --time-limit."
        if check.ab_command:
            advice = f" Two stored runs cannot tell; measure both sides together: {check.ab_command}"
    return [printable(f"Inconclusive: {', '.join(parts.values())}.{advice}")]


def figure(value: float | None, unit: str) -> str:
    """A value with its unit."""
    if value is None:
        return MISSING
    if unit == "bytes":
        return format_bytes(value)
    return f"{significant(value)} s" if unit == "s" else significant(value)


def percent(value: float | None, sign: bool = True) -> str:
    """As `units.format_percent`, and `-` for what is not known."""
    return MISSING if value is None else format_percent(value, sign=sign)


def cells(row: RowCheck) -> dict[str, str]:
    """One row by the keys of HEADINGS, safe to print but not escaped for any markup."""
    time, memory = finding(row, "fps"), finding(row, "peak_memory")
    interval = MISSING
    if time and time.change_low is not None and time.change_high is not None:
        interval = f"{percent(time.change_low)} to {percent(time.change_high)}"
    return {
        "verdict": row.verdict,
        "row": printable(row.id),
        "before": figure(time.baseline, "1/s") if time else MISSING,
        "now": figure(time.current, "1/s") if time else MISSING,
        "change": percent(time.change) if time else MISSING,
        "interval": interval,
        "detectable": percent(time.detectable, sign=False) if time else MISSING,
        "memory": percent(memory.change) if memory else MISSING,
    }


HEADINGS = {
    "verdict": "verdict",
    "row": "row",
    "before": "FPS before",
    "now": "now",
    "change": "change",
    "interval": "interval",
    "detectable": "detectable",
    "memory": "memory",
}
FIGURES = frozenset(HEADINGS) - {"verdict", "row"}
