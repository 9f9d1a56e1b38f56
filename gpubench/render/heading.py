"""What was measured where, in a few lines; the terminal and Markdown both show these."""

from __future__ import annotations

from gpubench.analysis.eligibility import MIN_ROUNDS
from gpubench.analysis.reasons import describe
from gpubench.analysis.table import rows
from gpubench.hardware.facts import Device, Environment
from gpubench.render.cells import notes
from gpubench.report.model import Recommendation, Report
from gpubench.text import plural, printable
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
    return [printable(title), _where(device, report.environment)]


def _where(device: Device, environment: Environment) -> str:
    parts = [device.name if device.kind == "cuda" else f"{device.name} ({plural(device.cores or 0, 'core')})"]
    if device.kind == "cpu" and device.cores is None:
        parts = [device.name]
    if device.total_memory_bytes is not None:
        parts.append(format_bytes(device.total_memory_bytes))
    if device.driver_version:
        parts.append(f"driver {device.driver_version}")
    parts.append(f"torch {environment.torch}")
    return printable(", ".join(parts))


def remarks(report: Report) -> list[str]:
    """What a reader must know beside the figures: rows with a reason, the run's notes, a sweep's end, a cut-off run."""
    table = rows(report)
    found = [*notes(table), *map(printable, report.notes)]
    if any(row.speedup and row.speedup.rounds < MIN_ROUNDS for row in table):
        found.insert(
            0,
            "~: a first impression from one process, against the baseline's of that time: FPS of other times do not "
            "compare. Figures with an interval are from rounds.",
        )
    if report.sweep:
        found.append(printable(report.sweep.reason))
    if report.finished_at is None:
        missing = len(set(report.plan.configurations) - {row.id for row in report.measurements})
        found.append(f"The run was cut off: {plural(missing, 'configuration')} not measured. --resume goes on with it.")
    return found


def verdict(report: Report, recommendation: Recommendation) -> list[str]:
    """The recommended configuration and its speed in two lines."""
    row = next((each for each in rows(report) if each.measurement.id == recommendation.id), None)
    name = describe(row.changed) if row else describe(recommendation.configuration)
    number = f" (#{row.number})" if row else ""
    return [printable(f"Recommended for {recommendation.objective}: {name}{number}"), printable(gain(recommendation))]


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
