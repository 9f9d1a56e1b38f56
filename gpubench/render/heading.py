"""What was measured where, remarks on a report, and its recommendation: the texts of its document."""

from __future__ import annotations

from gpubench.analysis.eligibility import MIN_ROUNDS
from gpubench.analysis.reasons import describe
from gpubench.analysis.table import rows
from gpubench.hardware.facts import Device, Environment
from gpubench.render.cells import notes
from gpubench.report.model import Recommendation, Report
from gpubench.text import plural
from gpubench.units import format_bytes, significant

GROUPS = {
    "baseline": "",
    "alone": "alone:",
    "ladder": "the ladder:",
    "sweep": "the sweep:",
    "other": "others:",
}


def heading(report: Report) -> list[str]:
    """Two lines: the workload, then the device and the software."""
    workload, device = report.workload, report.device
    parameters = "".join(f", {name} {value}" for name, value in workload.parameters.items())
    title = f"{workload.name} {workload.mode}, size {workload.size}{parameters}, batch size {workload.batch_size}"
    return [title, _where(device, report.environment)]


def _where(device: Device, environment: Environment) -> str:
    parts = [device.name if device.kind == "cuda" else f"{device.name} ({plural(device.cores or 0, 'core')})"]
    if device.kind == "cpu" and device.cores is None:
        parts = [device.name]
    if device.total_memory_bytes is not None:
        parts.append(format_bytes(device.total_memory_bytes))
    if device.driver_version:
        parts.append(f"driver {device.driver_version}")
    parts.append(f"torch {environment.torch}")
    return ", ".join(parts)


def remarks(report: Report) -> list[str]:
    """Sentences on rows, the run's own notes, the end of a sweep, and whether the run was cut off."""
    table = rows(report)
    found = [*notes(table), *report.notes]
    if any(row.speedup and row.speedup.rounds < MIN_ROUNDS for row in table):
        found.insert(
            0,
            "~: single process; do not compare FPS across rows. Figures with an interval are from interleaved rounds.",
        )
    if report.sweep:
        found.append(report.sweep.reason)
    if report.finished_at is None:
        missing = len(set(report.plan.configurations) - {row.id for row in report.measurements})
        found.append(
            f"The run was cut off: {plural(missing, 'configuration')} not measured. Continue it with --resume."
        )
    return found


def verdict(report: Report, recommendation: Recommendation) -> list[str]:
    """The recommended configuration and its speed in two lines."""
    row = next((each for each in rows(report) if each.measurement.id == recommendation.id), None)
    name = describe(row.changed) if row else describe(recommendation.configuration)
    number = f" (#{row.number})" if row else ""
    return [f"Recommended for {recommendation.objective}: {name}{number}", gain(recommendation)]


def gain(recommendation: Recommendation) -> str:
    """The speedup with its interval, and versus what."""
    if recommendation.id == recommendation.versus:
        return "It is the baseline itself."
    if recommendation.speedup is None:
        return f"Speedup versus {recommendation.versus} not known."
    interval = ""
    if recommendation.speedup_low is not None and recommendation.speedup_high is not None:
        interval = f" ({significant(recommendation.speedup_low)} to {significant(recommendation.speedup_high)})"
    rounds = f" over {plural(recommendation.rounds, 'round')} of fresh processes" if recommendation.rounds else ""
    return f"Speedup {significant(recommendation.speedup)}x{interval} versus {recommendation.versus}{rounds}."
