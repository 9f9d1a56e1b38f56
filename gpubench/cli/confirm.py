"""`gpubench check --confirm`: measures suspected rows again on this machine, and decides anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from gpubench.analysis import comparability
from gpubench.analysis.check import Source, check
from gpubench.analysis.verdicts import Check, Limits, RowCheck
from gpubench.cli.progress import listener
from gpubench.errors import EXIT_INCOMPARABLE, GpubenchError
from gpubench.results.schema import Report
from gpubench.runner.bench import Bench
from gpubench.runner.confirm import Confirmer
from gpubench.runner.laboratory import Laboratory, known_size
from gpubench.text import printable
from gpubench.worker.messages import Described, WorkloadChoice

MOST_CONTROLS = 2
OPEN = ("regressed", "inconclusive")


def confirm(
    found: Check,
    current: Source,
    baseline: Source,
    limits: Limits,
    allow: Sequence[str],
    time_limit_s: float,
    quiet: bool,
) -> Check:
    """The check once its suspects were measured again; `found` itself where it has none.

    Raises GpubenchError where this is not the machine, software or code of the current report (exit code 3).
    """
    suspects, controls = suspects_of(found.rows), controls_of(found.rows)
    if not suspects or found.paired:
        return found
    report, workload = current.report, current.report.workload
    choice = WorkloadChoice(
        reference=workload.reference,
        size=known_size(workload.size),
        parameters={name: str(value) for name, value in workload.parameters.items()},
        mode=workload.mode,
    )
    device = "cpu" if report.device.kind == "cpu" else f"cuda:{report.device.index or 0}"
    with Laboratory(choice, device, report.protocol) as laboratory, listener(quiet) as progress:
        refuse_unlike(current, laboratory.describe(report.workload.batch_size))
        if not controls:
            progress.note("No row is sure not to have changed, so nothing can show what the machine itself does.")
        base = next(row for row in report.measurements if row.id == report.plan.baseline)

        def is_open(newest: Report) -> bool:
            decided = check(Source(current.name, newest), baseline, limits, allow)
            return any(row.id in suspects and time_verdict(row) == "inconclusive" for row in decided.rows)

        confirmer = Confirmer(
            report=report,
            path=Path(current.name),
            bench=Bench(laboratory, base.configuration, progress.phase),
            listener=progress,
            is_open=is_open,
            time_limit_s=time_limit_s,
        )
        newest = confirmer.run(suspects, controls)
    return check(Source(current.name, newest), baseline, limits, allow)


def suspects_of(rows: Sequence[RowCheck]) -> list[str]:
    """The rows whose time looks worse or could not be told."""
    return [row.id for row in rows if time_verdict(row) in OPEN]


def controls_of(rows: Sequence[RowCheck]) -> list[str]:
    """The rows whose time is surest not to have changed."""
    sure = [
        (one.detectable, row.id)
        for row in rows
        for one in row.findings
        if one.metric == "fps" and one.verdict == "unchanged" and one.detectable is not None
    ]
    return [row_id for _, row_id in sorted(sure)[:MOST_CONTROLS]]


def time_verdict(row: RowCheck) -> str | None:
    """The verdict on the row's FPS; None where it has none."""
    return next((one.verdict for one in row.findings if one.metric == "fps"), None)


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
