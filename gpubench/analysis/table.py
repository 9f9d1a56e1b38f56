"""A report as rows and as tidy records: the one source of what tables, CSV and other files show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from gpubench.analysis.effects import ladder, shown
from gpubench.analysis.eligibility import gate
from gpubench.analysis.reasons import describe
from gpubench.analysis.speedup import Speedups
from gpubench.metrics import all_metrics
from gpubench.report.model import Configuration, Measurement, Quality, Report
from gpubench.stats.estimate import Estimate

if TYPE_CHECKING:
    import pandas as pd

Scalar = str | int | float | bool | None
Group = Literal["baseline", "alone", "ladder", "sweep", "other"]


@dataclass(frozen=True)
class Row:
    """One measurement with what analysis adds to it. `number` counts from 1 in the report's order; 0: not numbered."""

    measurement: Measurement
    number: int = 0
    changed: Configuration = field(default_factory=dict)  # against the baseline; in a sweep always the swept toggle
    speedups: Speedups | None = None  # of the report

    @cached_property
    def speedup(self) -> Estimate | None:
        """Versus the baseline; None for that itself, and where one of both is not reliable.

        A row that is wrong or had no effect did not do the same work: its ratio would be a false number.
        """
        baseline = self.speedups.report.baseline if self.speedups else None
        if not self.speedups or not baseline or gate(baseline) or gate(self.measurement):
            return None
        return self.speedups.of(self.measurement, baseline)


@dataclass(frozen=True)
class Line:
    """A row as a table for people shows it: one row may be both a toggle alone and a step of the ladder."""

    label: str
    row: Row


def rows(report: Report) -> list[Row]:
    """The report's measurements in order, skipped ones among them."""
    baseline, speedups = report.baseline, Speedups(report)
    return [Row(row, number, shown(row, baseline), speedups) for number, row in enumerate(report.measurements, start=1)]


def lines(report: Report) -> dict[Group, list[Line]]:
    """The rows that ran, grouped for reading: baseline, each toggle alone, the ladder, a sweep, all others."""
    numbered = {row.measurement.id: row for row in rows(report) if row.measurement.status != "skipped"}
    grouped: dict[Group, list[Line]] = {"baseline": [], "alone": [], "ladder": [], "sweep": [], "other": []}
    for row in numbered.values():
        kinds = {role.kind for role in row.measurement.roles}
        if "sweep" in kinds:
            grouped["sweep"].append(Line(describe(row.changed), row))
        elif row.measurement.id == report.plan.baseline:
            names = ", ".join(each.name for each in row.measurement.evidence if each.name)
            grouped["baseline"].append(Line(f"baseline ({names})" if names else "baseline", row))
        elif row.measurement.is_control:
            grouped["baseline"].append(Line("baseline again (A/A control)", row))
        elif "alone" in kinds:
            grouped["alone"].append(Line(describe(row.changed), row))
        elif "ladder" not in kinds:
            prefix = "all: " if "all" in kinds else ""
            grouped["other"].append(Line(prefix + describe(row.changed), row))
    for measurement, toggle in ladder(report):
        if measurement.id in numbered:
            label = f"+ {toggle}={measurement.configuration.get(toggle)}"
            grouped["ladder"].append(Line(label, numbered[measurement.id]))
    return grouped


ABOUT = ("device", "workload", "mode", "size", "created_at")
# What a record holds before its metrics, and after them: key -> how it is read from a row.
LABELS: dict[str, Callable[[Row], Scalar]] = {
    "number": lambda row: row.number,
    "id": lambda row: row.measurement.id,
    "roles": lambda row: " ".join(_role(row.measurement)),
    "changed": lambda row: describe(row.changed),
    "status": lambda row: row.measurement.status,
    "reason": lambda row: row.measurement.reason,
}
REMARKS: dict[str, Callable[[Row], Scalar]] = {
    "speedup_versus": lambda row: row.speedup.versus if row.speedup else None,
    "speedup_phase": lambda row: row.speedup.phase if row.speedup else None,
    "quality_passed": lambda row: row.measurement.quality.passed if row.measurement.quality else None,
    "worst_output": lambda row: _worst_output(row.measurement.quality),
    "flags": lambda row: "; ".join(map(str, row.measurement.flags)),
}


def _worst_output(quality: Quality | None) -> str | None:
    return quality.outputs[0].name if quality and quality.outputs else None


def _role(row: Measurement) -> list[str]:
    return [role.kind if role.toggle is None else f"{role.kind}:{role.toggle}" for role in row.roles]


def tidy(report: Report) -> list[dict[str, Scalar]]:
    """One record a measurement: what was run, its labels, every metric, remarks, and `configuration.TOGGLE`.

    The keys are the same in every record. A figure that was not measured is None, never 0.
    """
    workload = report.workload
    values = (report.device.name, workload.name, workload.mode, workload.size, report.created_at)
    about: dict[str, Scalar] = dict(zip(ABOUT, values, strict=True))
    toggles = {name: None for row in report.measurements for name in row.configuration}
    return [
        about
        | {name: read(row) for name, read in LABELS.items()}
        | {metric.column: metric.value(report, row) for metric in all_metrics().values()}
        | {name: read(row) for name, read in REMARKS.items()}
        | {f"configuration.{name}": row.measurement.configuration.get(name) for name in toggles}
        for row in rows(report)
    ]


def frame(*reports: Report) -> pd.DataFrame:
    """The tidy records of the reports, one row a measurement; what was not measured is missing, never 0."""
    import pandas as pd

    records = [record for report in reports for record in tidy(report)]
    columns = list(dict.fromkeys([*names(), *(name for record in records for name in record)]))
    # object: a column of whole numbers with one missing must not turn into floats (batch size 8.0).
    return pd.DataFrame([[record.get(name) for name in columns] for record in records], columns=columns, dtype=object)


def names() -> list[str]:
    """The keys that every record has, whatever the toggles."""
    return [*ABOUT, *LABELS, *(metric.column for metric in all_metrics().values()), *REMARKS]
