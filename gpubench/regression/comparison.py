"""One report against its baseline: a verdict for each row and metric.

Deterministic metrics gate by their limits alone: status, missing rows, output quality, graph breaks, memory. A change
of time needs an effect of at least the limit that is significant (Student's t over processes or paired rounds,
one-sided 1 %, Holm's correction for the number of rows); it is `unchanged` only where the limit is ruled out at 95 %.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import NamedTuple

from gpubench.errors import EXIT_INCOMPARABLE, EXIT_INCONCLUSIVE, EXIT_OK, EXIT_REGRESSION
from gpubench.metrics import gated
from gpubench.regression import comparability
from gpubench.regression.comparability import are_paired
from gpubench.regression.fixed_checks import RowPair, gates
from gpubench.regression.matching import match
from gpubench.regression.time_verdicts import timed
from gpubench.regression.verdicts import Check, Finding, Limits, RowCheck, Verdict, worst
from gpubench.report.model import Measurement, Report
from gpubench.text import plural

EXIT_CODES: dict[Verdict, int] = {
    "regressed": EXIT_REGRESSION,
    "incomparable": EXIT_INCOMPARABLE,
    "inconclusive": EXIT_INCONCLUSIVE,
}  # of the others: 0
# Roles of rows that the matrix asks for; a run selects the others by what it measured.
ASKED = frozenset({"baseline", "alone", "grid", "sweep"})


class NamedReport(NamedTuple):
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
    before, now = baseline.report, current.report
    # Sides of one session may have other names and parameters: `ab` checked that their work is the same.
    if not are_paired(before, now) and comparability.about(before) != comparability.about(now):
        notes = ["The reports are about different workloads, modes, sizes or parameters."]
        return _result(current, baseline, limits, notes=notes)
    unlike = comparability.differences(before, now)
    allowed = [difference.field for difference in unlike if difference.field in allow]
    if refused := comparability.refused(before, now, allow):
        return _result(current, baseline, limits, differences=refused, allowed=allowed)
    rows, notes = _rows(now, before, limits, allow, family)
    # Without any row, those of the baseline are missing, which is a regression.
    verdict = worst([row.verdict for row in rows])
    if now.measurements and all(row.status != "ok" for pair in match(before, now).both for row in pair):
        verdict = "incomparable"
        notes.append("No row of the baseline ran in both reports.")
    return _result(current, baseline, limits, rows, verdict, differences=unlike, allowed=allowed, notes=notes)


def without_baseline(current: NamedReport, where: str, note: str, limits: Limits) -> Check:
    """The check of a report without a baseline."""
    return _result(current, NamedReport(where, current.report), limits, notes=[note])


def _result(
    current: NamedReport,
    baseline: NamedReport,
    limits: Limits,
    rows: Sequence[RowCheck] = (),
    verdict: Verdict = "incomparable",
    *,
    differences: Sequence[comparability.Difference] = (),
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
        exit_code=EXIT_CODES.get(verdict, EXIT_OK),
        limits=limits.settled(report.device.kind, paired),
        rows=list(rows),
        differences=[str(difference) for difference in differences],
        allowed=list(allowed),
        notes=list(notes),
        ab_command="" if paired else _ab_command(report, rows),
    )


def _ab_command(report: Report, rows: Sequence[RowCheck]) -> str:
    """`gpubench ab` for the rows that are inconclusive. The older side is for the user to name."""
    workload, base = report.workload, report.baseline.configuration if report.baseline else {}
    device = "cpu" if report.device.kind == "cpu" else f"cuda:{report.device.index or 0}"
    words = ["gpubench", "ab", workload.reference, "--mode", workload.mode, "--size", workload.size, "--device", device]
    for name, value in workload.parameters.items():
        words += ["--param", f"{name}={value}"]
    is_open = (row.configuration for row in rows if row.verdict == "inconclusive")
    changes = [{name: value for name, value in each.items() if base.get(name) != value} for each in is_open]
    held = dict(report.plan.fix)
    if changes and all(len(each) > 1 for each in changes):
        held |= changes[0]  # `--set` changes one toggle a row
    for name, value in held.items():
        words += ["--fix", f"{name}={value}"]
    for name, value in (pair for each in changes if len(each) == 1 for pair in each.items()):
        words += ["--set", f"{name}={value}"]
    older = "REVISION" if workload.source_hash else "PYTHON"  # a file has revisions, a built-in workload has not
    return f"{shlex.join(words)} --a {older}"


def _rows(
    current: Report, baseline: Report, limits: Limits, allow: Sequence[str], family: int
) -> tuple[list[RowCheck], list[str]]:
    """A check of each row of either report, in the baseline's order, and notes."""
    matched = match(baseline, current)
    running = [(old, new) for old, new in matched.both if old.status == new.status == "ok"]
    # By steps of unlike numbers of items no time is compared, unless that was allowed.
    unfair = {new.id for old, new in running if old.items_per_step != new.items_per_step and "batch_size" not in allow}
    running = [pair for pair in running if pair[1].id not in unfair]
    times = timed(running, current, baseline, limits, family)
    checked: list[RowCheck] = []
    for old, new in matched.both:
        pair = RowPair(old, new, baseline, current, by_item="batch_size" in allow)
        findings = [*gates(pair, limits), *times.get(new.id, [])]
        if new.id in unfair:
            reason = f"{plural(new.items_per_step or 0, 'item')} per step, {old.items_per_step} before."
            findings.append(Finding(metric="fps", verdict="inconclusive", reason=reason))
        checked.append(_row_check(new, findings, paired=are_paired(baseline, current)))
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


def _row_check(row: Measurement, findings: list[Finding], *, paired: bool = False) -> RowCheck:
    # What is much noisier than a median, or measured only once, would leave every row undecided.
    indecisive = {metric.name for metric in gated() if not metric.decisive}
    deciding = [one for one in findings if one.metric not in indecisive or one.verdict != "inconclusive"]
    if paired:  # the time itself was compared well, and that is what more or fewer operators would stand for
        counted = {metric.name for metric in gated() if metric.exact}
        deciding = [one for one in deciding if one.metric not in counted]
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
