"""`gpubench check --confirm`: measures suspected rows again on this machine, and decides anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from gpubench.analysis import comparability
from gpubench.analysis.check import Source, check
from gpubench.analysis.verdicts import Check, Limits, Metric, RowCheck, Verdict
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

    Raises GpubenchError where this is not the machine, software or code of the current report (exit code 3), where the
    command line did not say what code that is, and where it was measured again before.
    """
    suspects, controls = suspects_of(found.rows), controls_of(found.rows)
    if not suspects or found.paired:
        return found
    report, workload = current.report, current.report.workload
    if report.confirmation is not None:
        raise GpubenchError(
            f"{printable(current.name)} was measured again before, on {printable(report.confirmation.at)}: looking "
            "until something is found finds something.",
            "Measure anew, or compare side by side with gpubench ab.",
        )
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
            return any(row.id in suspects and is_open(row) for row in decided.rows)

        confirmer = Confirmer(
            report=report,
            path=Path(current.name),
            bench=Bench(laboratory, base.configuration, progress.phase),
            listener=progress,
            is_open=any_open,
            time_limit_s=again.time_limit_s,
        )
        newest = confirmer.run(suspects, controls)
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


def suspects_of(rows: Sequence[RowCheck]) -> list[str]:
    """The rows whose time looks worse, its tail included, or could not be told."""
    return [row.id for row in rows if time_verdict(row) in OPEN or time_verdict(row, "latency_p95") == "regressed"]


def controls_of(rows: Sequence[RowCheck]) -> list[str]:
    """The rows that are sure not to have got slower, those whose time changed least."""
    sure = [
        (abs(one.change), row.id)
        for row in rows
        for one in row.findings
        if one.metric == "fps" and one.verdict == "unchanged" and one.change is not None
    ]
    return [row_id for _, row_id in sorted(sure)[:MOST_CONTROLS]]


def time_verdict(row: RowCheck, metric: Metric = "fps") -> Verdict | None:
    """The verdict on the row's time; None where it has none."""
    return next((one.verdict for one in row.findings if one.metric == metric), None)


def is_open(row: RowCheck) -> bool:
    """Whether more rounds could decide on the row's FPS: not where it is no lack of them that leaves it open."""
    return any(one.metric == "fps" and one.verdict == "inconclusive" and one.detectable for one in row.findings)


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
