"""A report as rows of tidy figures: the one source of what the terminal table, Markdown and CSV show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gpubench.analysis.effects import ladder, shown
from gpubench.analysis.eligibility import find, gate
from gpubench.analysis.peak_memory import peak_bytes
from gpubench.analysis.reasons import describe
from gpubench.analysis.speedup import speedup, spread
from gpubench.report.model import Configuration, Measurement, Report
from gpubench.stats.estimate import Estimate

if TYPE_CHECKING:
    import pandas as pd

Scalar = str | int | float | bool | None
Group = Literal["baseline", "alone", "ladder", "sweep", "other"]


@dataclass(frozen=True)
class Row:
    """One measurement with what analysis adds to it. `number` counts from 1 in the report's order."""

    number: int
    measurement: Measurement
    changed: Configuration  # against the baseline; in a sweep always with the toggle that is swept
    speedup: Estimate | None  # versus the baseline; None for the baseline itself
    memory_bytes: int | None


@dataclass(frozen=True)
class Line:
    """A row as it stands in a table for people: one row may be a technique alone and a rung of the ladder."""

    label: str
    row: Row


@dataclass(frozen=True)
class Column:
    """A tidy column: its name with the unit as suffix, and how it is read from a row."""

    name: str
    read: Callable[[Row], Scalar]


def rows(report: Report) -> list[Row]:
    """The report's measurements in order, skipped ones among them."""
    baseline = find(report, report.plan.baseline)
    usable = baseline if baseline is not None and gate(baseline) is None else None
    between = spread(report)
    return [
        Row(
            number=number,
            measurement=row,
            changed=shown(row, baseline),
            # A row that is wrong or had no effect did not do the same work: its ratio would be a false number.
            speedup=speedup(row, usable, between, report.measurements) if usable and gate(row) is None else None,
            memory_bytes=peak_bytes(row, report.device.kind),
        )
        for number, row in enumerate(report.measurements, start=1)
    ]


def lines(report: Report) -> dict[Group, list[Line]]:
    """The rows that ran, grouped for reading: baseline, each technique alone, the ladder, a sweep, all others."""
    numbered = {row.measurement.id: row for row in rows(report) if row.measurement.status != "skipped"}
    grouped: dict[Group, list[Line]] = {"baseline": [], "alone": [], "ladder": [], "sweep": [], "other": []}
    for row in numbered.values():
        kinds = {role.kind for role in row.measurement.roles}
        if "sweep" in kinds:
            grouped["sweep"].append(Line(describe(row.changed), row))
        elif row.measurement.id == report.plan.baseline:
            grouped["baseline"].append(Line("baseline", row))
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


COLUMNS = (
    Column("number", lambda row: row.number),
    Column("id", lambda row: row.measurement.id),
    Column("roles", lambda row: " ".join(_role(row.measurement))),
    Column("changed", lambda row: describe(row.changed)),
    Column("status", lambda row: row.measurement.status),
    Column("reason", lambda row: row.measurement.reason),
    Column("fps", lambda row: row.measurement.fps),
    Column("items_per_step", lambda row: row.measurement.items_per_step),
    Column("latency_median_s", lambda row: _latency(row, "median")),
    Column("latency_p5_s", lambda row: _latency(row, "p5")),
    Column("latency_p95_s", lambda row: _latency(row, "p95")),
    Column("latency_ci_low_s", lambda row: _latency(row, "ci_low")),
    Column("latency_ci_high_s", lambda row: _latency(row, "ci_high")),
    Column("speedup", lambda row: row.speedup.ratio if row.speedup else None),
    Column("speedup_low", lambda row: row.speedup.low if row.speedup else None),
    Column("speedup_high", lambda row: row.speedup.high if row.speedup else None),
    Column("speedup_versus", lambda row: row.speedup.versus if row.speedup else None),
    Column("speedup_phase", lambda row: row.speedup.phase if row.speedup else None),
    Column("speedup_rounds", lambda row: row.speedup.rounds if row.speedup else None),
    Column("processes", lambda row: row.measurement.latency_s.processes if row.measurement.latency_s else None),
    Column("host_bound_fraction", lambda row: row.measurement.host_bound_fraction),
    Column("peak_memory_bytes", lambda row: row.memory_bytes),
    Column("compile_time_s", lambda row: row.measurement.compile_time_s),
    Column("quality_passed", lambda row: row.measurement.quality.passed if row.measurement.quality else None),
    Column("relative_error", lambda row: row.measurement.quality.relative_error if row.measurement.quality else None),
    Column("flags", lambda row: "; ".join(map(str, row.measurement.flags))),
)


def _role(row: Measurement) -> list[str]:
    return [role.kind if role.toggle is None else f"{role.kind}:{role.toggle}" for role in row.roles]


def _latency(row: Row, name: str) -> float | None:
    return getattr(row.measurement.latency_s, name) if row.measurement.latency_s else None


def tidy(report: Report) -> list[dict[str, Scalar]]:
    """One mapping a measurement, all with the same keys: what was run, the columns, and `configuration.TOGGLE`."""
    about: dict[str, Scalar] = {
        "device": report.device.name,
        "workload": report.workload.name,
        "mode": report.workload.mode,
        "size": report.workload.size,
        "created_at": report.created_at,
    }
    toggles = {name: None for row in report.measurements for name in row.configuration}
    return [
        about
        | {column.name: column.read(row) for column in COLUMNS}
        | {f"configuration.{name}": row.measurement.configuration.get(name) for name in toggles}
        for row in rows(report)
    ]


def frame(*reports: Report) -> pd.DataFrame:
    """The tidy rows of the reports, one row a measurement; what was not measured is missing, never 0."""
    import pandas as pd

    about = ("device", "workload", "mode", "size", "created_at")
    names = [*about, *(column.name for column in COLUMNS)]
    records = [record for report in reports for record in tidy(report)]
    extra = {name: None for record in records for name in record if name not in names}
    columns = [*names, *extra]
    # object: a column of whole numbers with one missing must not turn into floats (batch size 8.0).
    return pd.DataFrame([[record.get(name) for name in columns] for record in records], columns=columns, dtype=object)
