"""One report against its baseline: a verdict for each row and metric.

Deterministic metrics gate by their limits alone: status, missing rows, output quality, graph breaks, memory. A change
of time needs an effect of at least the limit that is significant (Student's t over processes or paired rounds,
one-sided 1 %, Holm's correction for the number of rows); it is `unchanged` only where the limit is ruled out at 95 %.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from gpubench.errors import EXIT_INCOMPARABLE, EXIT_INCONCLUSIVE, EXIT_OK, EXIT_REGRESSION
from gpubench.metrics import gated
from gpubench.regression import comparability
from gpubench.regression.comparability import are_paired
from gpubench.regression.fixed_checks import gates
from gpubench.regression.matching import match
from gpubench.regression.time_verdicts import Pair, timed
from gpubench.regression.verdicts import Check, Finding, Limits, RowCheck, Verdict, worst
from gpubench.report.model import Measurement, Report
from gpubench.text import plural

EXIT_CODES: dict[Verdict, int] = {
    "regressed": EXIT_REGRESSION,
    "incomparable": EXIT_INCOMPARABLE,
    "inconclusive": EXIT_INCONCLUSIVE,
    "improved": EXIT_OK,
    "unchanged": EXIT_OK,
}
# Roles of rows that the matrix asks for; a run selects the others by what it measured.
ASKED = frozenset({"baseline", "alone", "grid", "sweep"})


@dataclass(frozen=True)
class NamedReport:
    """A report with the name of its source."""

    name: str
    report: Report


def check(
    current: NamedReport, baseline: NamedReport, limits: Limits, allow: Sequence[str] = (), family: int = 0
) -> Check:
    """The verdicts on `current`; `incomparable` as a whole where a field that is not in `allow` differs.

    Args:
        allow: fields that may differ; see `comparability.FIELDS`.
        family: the final number of rows, where some are still to be measured.
    """
    unlike = comparability.differences(baseline.report, current.report)
    paired = are_paired(baseline.report, current.report)
    # Sides of one session may have other names and parameters: `ab` checked that their work is the same.
    if not paired and comparability.about(baseline.report) != comparability.about(current.report):
        notes = ["The reports are about different workloads, modes, sizes or parameters."]
        return _result(current, baseline, limits, [], "incomparable", notes=notes)
    refused = comparability.refused(baseline.report, current.report, allow)
    allowed = [one.field for one in unlike if one.field in allow]
    if refused:
        texts = [str(one) for one in refused]
        return _result(current, baseline, limits, [], "incomparable", differences=texts, allowed=allowed)
    rows, notes = _rows(current.report, baseline.report, limits, allow, family)
    # Without any row, those of the baseline are missing, which is a regression.
    both = match(baseline.report, current.report).both
    comparable = not current.report.measurements or any(one.status == "ok" for row in both for one in row)
    if not comparable:
        notes.append("No row of the baseline ran in both reports.")
    return _result(
        current, baseline, limits, rows, worst([row.verdict for row in rows]) if comparable else "incomparable",
        differences=[str(one) for one in unlike], allowed=allowed, notes=notes,
    )  # fmt: skip


def without_baseline(current: NamedReport, where: str, note: str, limits: Limits) -> Check:
    """The check of a report without a baseline."""
    return _result(current, NamedReport(where, current.report), limits, [], "incomparable", notes=[note])


def _result(
    current: NamedReport,
    baseline: NamedReport,
    limits: Limits,
    rows: list[RowCheck],
    verdict: Verdict,
    *,
    differences: Sequence[str] = (),
    allowed: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Check:
    report = current.report
    paired = are_paired(baseline.report, report) and baseline.report is not report
    return Check(
        current=current.name,
        baseline=baseline.name,
        workload=report.workload.name,
        mode=report.workload.mode,
        device=report.device.name,
        paired=paired,
        verdict=verdict,
        exit_code=EXIT_CODES[verdict],
        limits=limits.settled(report.device.kind, paired),
        rows=rows,
        differences=list(differences),
        allowed=list(allowed),
        notes=list(notes),
        ab_command="" if paired else _ab_command(report),
    )


def _ab_command(report: Report) -> str:
    """`gpubench ab` for the report's workload. The older side is for the user to name."""
    workload = report.workload
    words = ["gpubench", "ab", workload.reference, "--mode", workload.mode, "--size", workload.size]
    for name, value in workload.parameters.items():
        words += ["--param", f"{name}={value}"]
    older = "REVISION" if workload.source_hash else "PYTHON"  # a file has revisions, a built-in workload has not
    return f"{shlex.join(words)} --a {older}"


def _rows(
    current: Report, baseline: Report, limits: Limits, allow: Sequence[str], family: int
) -> tuple[list[RowCheck], list[str]]:
    """A check of each row of either report, in the baseline's order, and notes."""
    matched = match(baseline, current)
    unfair = {pair[1].id for pair in matched.both if "batch_size" not in allow and _unlike_items(pair)}
    running = [pair for pair in matched.both if all(row.status == "ok" for row in pair) and pair[1].id not in unfair]
    times = timed(running, current, baseline, limits, family)
    checked: list[RowCheck] = []
    for old, new in matched.both:
        findings = gates(old, new, baseline, current, limits, by_item="batch_size" in allow)
        findings += times.get(new.id, [])
        if new.id in unfair:
            reason = f"A step is over {new.items_per_step} items, it was over {old.items_per_step}."
            findings.append(Finding(metric="fps", verdict="inconclusive", reason=reason))
        checked.append(_row_check(new, findings))
    checked += [_missing(row, current) for row in matched.missing]
    names = ", ".join(row.id for row in matched.fresh[:3]) + (", ..." if len(matched.fresh) > 3 else "")
    count = len(matched.fresh)
    notes = [f"{plural(count, 'row is', 'rows are')} new: {names}."] if count else []
    if not checked and not count:
        notes.append("Neither report has a row.")
    if is_same_run(baseline, current):
        notes.append("Both are the same run, so no change can show.")
    return checked, notes


def is_same_run(baseline: Report, current: Report) -> bool:
    """Whether both hold the samples of one run, which one of them may have continued."""
    if baseline.created_at != current.created_at:
        return False
    one, other = ({row.id: row.samples_s for row in report.measurements} for report in (baseline, current))
    both = [tuple(zip(one[id], other[id], strict=False)) for id in one if id in other]  # up to where one ends
    alike = all(first == second for samples in both for first, second in samples)
    return any(both) and alike


def _unlike_items(pair: Pair) -> bool:
    """Whether both ran, with different numbers of items in a step."""
    old, new = pair
    return old.status == "ok" == new.status and old.items_per_step != new.items_per_step


def _row_check(row: Measurement, findings: list[Finding]) -> RowCheck:
    # What is much noisier than a median, or measured only once, would leave every row undecided.
    indecisive = {metric.name for metric in gated() if not metric.decisive}
    deciding = [one for one in findings if one.metric not in indecisive or one.verdict != "inconclusive"]
    verdict = worst([one.verdict for one in deciding])
    return RowCheck(id=row.id, configuration=row.configuration, verdict=verdict, findings=findings)


def _missing(row: Measurement, current: Report) -> RowCheck:
    verdict: Verdict = "regressed"
    reason = "It is missing from the current report."
    if row.status == "skipped":
        verdict, reason = "unchanged", "It was skipped before and is missing now."
    elif not any(role.kind in ASKED for role in row.roles):
        verdict = "incomparable"
        reason = "It is not in the current report: the baseline's run selected it by its own measurements."
    elif current.finished_at is None:
        reason = "It is missing from the current report, whose run was interrupted."
    return _row_check(row, [Finding(metric="status", verdict=verdict, reason=reason)])
