"""`gpubench check --confirm`: measures suspected rows again on this machine, and decides anew."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from pathlib import Path

import msgspec

from gpubench.analysis import comparability
from gpubench.analysis.check import Source, check
from gpubench.analysis.eligibility import gate
from gpubench.analysis.matching import match
from gpubench.analysis.verdicts import Check, Limits, Metric
from gpubench.cli.progress import listener
from gpubench.cli.verdicts import Again
from gpubench.errors import EXIT_INCOMPARABLE, GpubenchError
from gpubench.results.schema import Report
from gpubench.runner.bench import Bench
from gpubench.runner.confirm import Confirmer
from gpubench.runner.laboratory import Laboratory, known_size
from gpubench.text import printable
from gpubench.worker.messages import Described, WorkloadChoice
from gpubench.workloads import check_reference, names

MOST_CONTROLS = 2
OPEN = ("regressed", "inconclusive")


def confirm(
    found: Check,
    current: Source,
    baseline: Source,
    limits: Limits,
    allow: Sequence[str],
    again: Again,
) -> Check:
    """The check once its suspects were measured again; `found` itself where it has none.

    A report is measured again once. Raises GpubenchError where this is not the machine, software or code of the current
    report (exit code 3), and where the command line did not say what code that is.
    """
    report, workload = current.report, current.report.workload
    suspects = suspects_of(found, baseline.report, report)
    controls = controls_of(found, suspects)
    if not suspects or found.paired:
        return found
    if report.confirmation is not None:
        note = (
            f"Not measured again: it was before, on {report.confirmation.at}, and looking until something is found "
            "finds something. Measure anew, or compare side by side with gpubench ab."
        )
        return msgspec.structs.replace(found, notes=[*found.notes, note])
    choice = WorkloadChoice(
        reference=reference_of(report, again.workload),
        size=known_size(workload.size),
        parameters={name: str(value) for name, value in workload.parameters.items()},
        mode=workload.mode,
    )
    device = "cpu" if report.device.kind == "cpu" else f"cuda:{report.device.index or 0}"
    with Laboratory(choice, device, report.protocol) as laboratory, listener(again.quiet) as progress:
        refuse_unlike(current, laboratory.describe(report.workload.batch_size))
        if not controls:
            progress.note("No row is sure not to have changed, so nothing can show what the machine itself does.")
        base = next(row for row in report.measurements if row.id == report.plan.baseline)

        def any_open(newest: Report) -> bool:
            decided = check(Source(current.name, newest), baseline, limits, allow)
            return bool(open_rows(decided, baseline.report, newest, suspects))

        confirmer = Confirmer(
            report=report,
            path=Path(current.name),
            bench=Bench(laboratory, base.configuration, progress.phase),
            listener=progress,
            is_open=any_open,
            time_limit_s=again.time_limit_s,
        )
        newest = confirmer.run(list(suspects), controls)
    return check(Source(current.name, newest), baseline, limits, allow)


def reference_of(report: Report, named: str | None) -> str:
    """What is imported and run: what the command line names, or a bundled workload.

    A report is data, perhaps from somebody else: the file that it names is not run for that alone.
    """
    reference = report.workload.reference
    if named is not None:
        check_reference(named)
        return named
    if reference in names():
        return reference
    raise GpubenchError(
        "--confirm runs the workload's code, and a report alone is not asked whose that is.",
        f"If you trust it, add --workload {printable(reference)}.",
    )


def suspects_of(found: Check, baseline: Report, current: Report) -> dict[str, tuple[Metric, ...]]:
    """The rows that are to be measured again, with the metrics of time that look worse or could not be told.

    Not those that stay open whatever is measured here: because of the baseline's figures, say.
    """
    mendable = only_disturbed(baseline, current)
    suspects = {}
    for row in found.rows:
        found_of = {one.metric: one for one in row.findings}
        fps, tail = found_of.get("fps"), found_of.get("latency_p95")
        metrics: list[Metric] = []
        if fps and fps.verdict in OPEN and (fps.detectable is not None or row.id in mendable):
            metrics.append("fps")
        if tail and tail.verdict == "regressed":
            metrics.append("latency_p95")
        if metrics:
            suspects[row.id] = tuple(metrics)
    return suspects


def open_rows(found: Check, baseline: Report, current: Report, suspects: Mapping[str, Sequence[Metric]]) -> list[str]:
    """Those of `suspects` that more rounds could still decide, in a metric that made them suspects."""
    mendable = only_disturbed(baseline, current)
    return [
        row.id
        for row in found.rows
        if any(
            one.verdict == "inconclusive" and (one.detectable is not None or row.id in mendable)
            for one in row.findings
            if one.metric in suspects.get(row.id, ())
        )
    ]


def only_disturbed(baseline: Report, current: Report) -> set[str]:
    """The current rows that nothing speaks against but that others used the machine while they were measured."""
    return {
        new.id
        for old, new in match(baseline, current).both
        if gate(old) is None and gate(new) is not None and gate(new, flags=False) is None
    }


def controls_of(found: Check, suspects: Container[str]) -> list[str]:
    """The rows that are sure not to have got slower, those whose time changed least."""
    sure = [
        (abs(one.change), row.id)
        for row in found.rows
        for one in row.findings
        if one.metric == "fps" and one.verdict == "unchanged" and one.change is not None and row.id not in suspects
    ]
    return [row_id for _, row_id in sorted(sure)[:MOST_CONTROLS]]


def refuse_unlike(current: Source, described: Described) -> None:
    """Raises GpubenchError where what was found here is not what the report was measured on."""
    report = current.report
    here = msgspec.structs.replace(
        report, device=described.device, environment=described.environment, workload=described.workload
    )
    unlike = [str(one) for one in comparability.differences(report, here)]
    if report.workload.source_hash != described.workload.source_hash:
        unlike.append("source: the workload's file was changed since")
    if unlike:
        raise GpubenchError(
            f"--confirm measures where {printable(current.name)} was measured, and these differ: "
            f"{printable('; '.join(unlike))}.",
            "Run it on that machine, or leave --confirm out.",
            exit_code=EXIT_INCOMPARABLE,
        )
