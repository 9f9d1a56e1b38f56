"""The metrics of a row: every table, file, check and history iterates them.

A new metric is one `Metric` in BUNDLED, or an entry point of the group `gpubench.metrics` in another distribution.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from gpubench.analysis.eligibility import MIN_ROUNDS
from gpubench.analysis.peak_memory import gated_bytes, peak_bytes
from gpubench.errors import GpubenchError, unknown_name
from gpubench.plugins import called, load_plugin, name_taken
from gpubench.report.model import Measurement, Report
from gpubench.text import plural
from gpubench.units import format_bytes, significant

if TYPE_CHECKING:
    from gpubench.analysis.table import Row

Number = float | int | None
Reader = Callable[[Report, "Row"], Number]

ENTRY_POINT_GROUP = "gpubench.metrics"
MISSING = "-"  # not measured; never 0
SUFFIXES = {"s": "_s", "bytes": "_bytes", "percent": "_percent", "W": "_watts", "J": "_joules"}
SYMBOLS = {"s": " s", "percent": " %", "W": " W", "J": " J"}


@dataclass(frozen=True)
class Metric:
    """One figure of a row, and how it is shown and judged.

    Args:
        name: What `history --metric` and the findings of `check` call it.
        unit: "s", "bytes", "1/s", "percent", "W", "J", or empty for a plain number.
        better: Which direction is an improvement; None where neither is.
        read: The value from a report and one of its rows; None where it was not measured.
        format: The text of a table's cell. Its heading has the unit.
        limit: By how much it may get worse in `check`: a field of `regression.verdicts.Limits`, or a share
            (0.1: 10 %). None: `check` does not look at it.
        heading: Of its column in tables; empty: it is in CSV and tidy JSON only.
        width: The narrowest terminal, in characters, whose tables show it.
        title: Its name in sentences; by default `name` with spaces.
        column: Its name in CSV and tidy JSON; by default `name` with the unit as suffix.
        cell: The text of a table's cell where that takes more than the value.
        compared: The value that `check` compares, where it is not the one shown.
        statistic: Of the time per item in one process; `check` then tests the processes of both reports.
        decisive: Whether a row is inconclusive where this metric is.
        exact: What a change by so much is called: "3 kernels more". For figures that repeat exactly, so that any change
            counts; `check` compares them only where the software is the same.
        by_kernels: Whether it depends on which kernels do the work, which some settings leave to a timing.

    Example:
        >>> Metric("temperature", "", None, lambda report, row: hottest(row.measurement), "{:.0f}".format)
    """

    name: str
    unit: str
    better: Literal["higher", "lower"] | None
    read: Reader
    format: Callable[[float], str] = significant
    limit: str | float | None = None
    heading: str = ""
    width: int = 160
    title: str = ""
    column: str = ""
    cell: Callable[[Row], str] | None = None
    compared: Reader | None = None
    statistic: Literal["median", "p95"] | None = None
    decisive: bool = True
    exact: Callable[[float], str] | None = None
    by_kernels: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", self.title or self.name.replace("_", " "))
        object.__setattr__(self, "column", self.column or self.name + SUFFIXES.get(self.unit, ""))

    def text(self, report: Report, row: Row) -> str:
        """The row's cell in a table for people."""
        value = self.value(report, row)
        if value is None:
            return MISSING
        return called("metric", self.name, self.cell, row) if self.cell else self.format(value)

    def value(self, report: Report, row: Row) -> Number:
        """The row's figure; None where it was not measured."""
        value = called("metric", self.name, self.read, report, row)
        if not isinstance(value, int | float | None):
            raise GpubenchError(f"The metric {self.name!r} read {value!r}, not a number.")
        return value

    def quantity(self, value: Number) -> str:
        """`value` with its unit, for a sentence: `1.25 GiB`, `0.0123 s`."""
        if value is None:
            return MISSING
        return significant(value) + SYMBOLS[self.unit] if self.unit in SYMBOLS else self.format(value)


def _at(path: str, start: str = "measurement") -> Reader:
    """Reads attributes of attributes of a row; None where one of them is None."""
    names = [start, *path.split(".")]

    def read(report: Report, row: Row) -> Number:
        value: Any = row
        for name in names:
            value = getattr(value, name, None)
        return value  # type: ignore[no-any-return]

    return read


def _peak(read: Callable[[Measurement, str], int | None]) -> Reader:
    return lambda report, row: read(row.measurement, report.device.kind)


def _milliseconds(seconds: float) -> str:
    return significant(1e3 * seconds, 4)


def _percentiles(row: Row) -> str:
    latency = row.measurement.latency_s
    return f"{_milliseconds(latency.p5)}-{_milliseconds(latency.p95)}" if latency else MISSING


def _times(row: Row) -> str:
    """`2.61x`; `~2.61x` where too few processes measured it for an interval."""
    if row.speedup is None:
        return MISSING
    return f"{'' if row.speedup.rounds >= MIN_ROUNDS else '~'}{significant(row.speedup.ratio)}x"


def _interval(row: Row) -> str:
    """`2.56-2.67 (6)`: the 95 % interval and the rounds of fresh processes behind it."""
    estimate = row.speedup
    if estimate is None or estimate.rounds < MIN_ROUNDS:
        return MISSING
    return f"{significant(estimate.low)}-{significant(estimate.high)} ({estimate.rounds})"


def _scientific(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"


def _counted(word: str, many: str = "") -> Callable[[float], str]:
    """`14 kernels more`, `1 kernel fewer`."""
    return lambda change: f"{plural(abs(round(change)), word, many)} {'more' if change > 0 else 'fewer'}"


def _allocated(change: float) -> str:
    return f"{format_bytes(abs(change))} {'more' if change > 0 else 'less'} allocated in a step"


def _flops(change: float) -> str:
    return f"{abs(change):.3g} FLOPs {'more' if change > 0 else 'fewer'} in a step"


def _work_in(dtype: str) -> Metric:
    def read(report: Report, row: Row) -> Number:
        counts = row.measurement.counts
        return counts.work.get(dtype, 0.0) if counts and counts.work else None

    def moved(change: float) -> str:
        return f"{100 * abs(change):.3g} % of the work {'fell back to' if change > 0 else 'no longer runs in'} {dtype}"

    wide = dtype in ("fp32", "fp64")  # what others fall back to: more of it is worse
    return Metric(
        f"work_{dtype}", "", "lower" if wide else None, read, "{:.1%}".format,
        limit=0.0 if wide else None, title=f"work in {dtype}", exact=moved, by_kernels=True,
    )  # fmt: skip


def _error(row: Row) -> str:
    """`3.1e-03`; `3.1e-03 scores` where that is the worst of several outputs."""
    quality = row.measurement.quality
    if quality is None or quality.relative_error is None:
        return MISSING
    name = quality.outputs[0].name.removeprefix("output.") if len(quality.outputs) > 1 else ""
    return f"{_scientific(quality.relative_error)} {name}".strip()


COUNT = "{:.0f}".format

# In the order of columns.
BUNDLED = (
    Metric(
        "fps", "1/s", "higher", _at("fps"),
        limit="slowdown", heading="FPS", width=0, title="FPS", statistic="median",
    ),
    Metric("items_per_step", "", None, _at("items_per_step"), COUNT),
    Metric("latency_median", "s", "lower", _at("latency_s.median"), _milliseconds, heading="latency ms", width=100),
    Metric(
        "latency_p5", "s", "lower", _at("latency_s.p5"), _milliseconds,
        heading="p5-p95 ms", width=130, cell=_percentiles,
    ),
    Metric("latency_p95", "s", "lower", _at("latency_s.p95"), limit="p95_growth", statistic="p95", decisive=False),
    Metric("latency_ci_low", "s", "lower", _at("latency_s.ci_low")),
    Metric("latency_ci_high", "s", "lower", _at("latency_s.ci_high")),
    Metric("speedup", "", "higher", _at("ratio", "speedup"), heading="speedup", width=0, cell=_times),
    Metric("speedup_low", "", "higher", _at("low", "speedup"), heading="95 % (rounds)", width=80, cell=_interval),
    Metric("speedup_high", "", "higher", _at("high", "speedup")),
    Metric("speedup_rounds", "", None, _at("rounds", "speedup"), COUNT),
    Metric("processes", "", None, _at("latency_s.processes"), COUNT),
    Metric("host_bound_fraction", "", "lower", _at("host_bound_fraction")),
    Metric(
        "peak_memory", "bytes", "lower", _peak(peak_bytes), format_bytes,
        limit="memory_growth", heading="memory", width=80, compared=_peak(gated_bytes),
    ),
    Metric(
        "compile_time", "s", "lower", _at("compile_time_s"),
        limit="compile_growth", heading="compile s", width=100, decisive=False,
    ),
    Metric(
        "quality", "", "lower", _at("quality.relative_error"), _scientific,
        limit="error_growth", heading="rel. error", width=130, title="output error", column="relative_error",
        cell=_error,
    ),
    Metric("largest_activation", "", None, _at("value_range.largest_activation")),
    Metric("near_overflow", "", "lower", _at("value_range.near_overflow"), _scientific),
    Metric("graph_breaks", "", "lower", _at("graph_breaks"), COUNT, limit=0.0, exact=_counted("graph break")),
    Metric(
        "frames_compiled", "", "lower", _at("counts.frames_compiled"), COUNT,
        limit=0.0, exact=_counted("compiled frame"),
    ),
    Metric("recompiles", "", "lower", _at("counts.recompiles"), COUNT, limit=0.0, exact=_counted("recompile")),
    Metric(
        "operators", "", "lower", _at("counts.operators"), COUNT,
        limit=0.0, heading="operators", width=200, exact=_counted("operator"), by_kernels=True,
    ),
    Metric(
        "kernels", "", "lower", _at("counts.kernels"), COUNT,
        limit=0.0, heading="kernels", width=200, exact=_counted("kernel"), by_kernels=True,
    ),
    Metric(
        "flops", "", "lower", _at("counts.flops"), "{:.4g}".format,
        limit=0.0, title="FLOPs", exact=_flops, by_kernels=True,
    ),
    Metric(
        "bytes_allocated", "bytes", "lower", _at("counts.bytes_allocated"), format_bytes,
        limit=0.0, column="bytes_allocated", exact=_allocated, by_kernels=True,
    ),
    Metric(
        "copies_to_device", "", "lower", _at("counts.copies_to_device"), COUNT,
        limit=0.0, exact=_counted("copy to the device", "copies to the device"),
    ),
    Metric(
        "synchronizations", "", "lower", _at("counts.synchronizations"), COUNT,
        limit=0.0, exact=_counted("synchronization"),
    ),
    *map(_work_in, ("fp32", "fp64", "bf16", "fp16")),
    Metric("gpu_utilization", "percent", None, _at("utilization.gpu_utilization_percent.mean"), COUNT, heading="GPU %"),
    Metric("process_cpu", "percent", None, _at("utilization.process_cpu_percent.mean"), COUNT, heading="CPU %"),
    Metric("power", "W", "lower", _at("utilization.power_watts.mean"), heading="power W"),
    Metric("energy_per_item", "J", "lower", _at("utilization.energy_per_item_joules"), heading="J/item"),
)  # fmt: skip


@functools.cache
def all_metrics() -> dict[str, Metric]:
    """Every metric by name, in the order of columns: those bundled, then those of other distributions.

    Raises GpubenchError where an entry point cannot be loaded or takes a name or a column that is taken.
    """
    from importlib.metadata import entry_points  # slow to import, and not every command needs metrics

    metrics = {metric.name: metric for metric in BUNDLED}
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        metric = load_plugin("metric", entry_point, Metric)
        for name, taken in ((metric.name, metrics), (metric.column, [other.column for other in metrics.values()])):
            if name in taken:
                raise name_taken("metric", name, entry_point, taken)
        metrics[metric.name] = metric
    return metrics


def gated() -> list[Metric]:
    """The metrics that `check` judges, in order."""
    return [metric for metric in all_metrics().values() if metric.limit is not None]


def get(name: str) -> Metric:
    """The metric called `name`.

    Raises GpubenchError with the nearest name where there is none.
    """
    metrics = all_metrics()
    if name not in metrics:
        raise unknown_name("metric", name, metrics)
    return metrics[name]
