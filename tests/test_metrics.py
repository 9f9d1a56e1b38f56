"""The registry of metrics, and that a metric of another distribution reaches every table, file and verdict."""

from __future__ import annotations

import csv
import dataclasses
import importlib.metadata
import io
import re
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from gpubench import metrics
from gpubench.analysis.table import Row, tidy
from gpubench.cli.main import run
from gpubench.errors import GpubenchError
from gpubench.metrics import BUNDLED, Metric, all_metrics, gated, get
from gpubench.regression.comparison import NamedReport, check
from gpubench.regression.trends import history
from gpubench.regression.verdicts import Limits, Verdict
from gpubench.render.check_document import checks_content
from gpubench.render.formats import render
from gpubench.render.report_document import reports_content
from gpubench.report.model import Measurement, OutputQuality, Reading, Report, StepCounts, Utilization, ValueRange
from gpubench.report.store import save
from gpubench.stats.processes import Statistic
from tests.render.screen import on_screen
from tests.reports import baseline, ladder_report, report, row


def read_loading(report: Report, row: Row) -> float | None:
    return row.measurement.phases_s.get("loading")


LOADING = Metric("loading", "s", "lower", read_loading, "{:.1f}".format, limit=0.1, heading="loading s", width=0)
RISING = dataclasses.replace(LOADING, better="higher")
RIVAL = Metric("fps", "1/s", "higher", read_loading, column="fps_again")
SAME_COLUMN = Metric("memory_peak", "bytes", "lower", read_loading, column="peak_memory_bytes")
NO_METRIC = "a text"


def install(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    points = [EntryPoint(name, f"{__name__}:{name}", metrics.ENTRY_POINT_GROUP) for name in names]
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: points if group == metrics.ENTRY_POINT_GROUP else []
    )
    all_metrics.cache_clear()


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    all_metrics.cache_clear()


def loaded(seconds: float | None, **changes: object) -> Measurement:
    found = baseline(explore_s=[0.1, 0.1001, 0.0999, 0.1, 0.1, 0.1])
    return msgspec.structs.replace(found, phases_s={} if seconds is None else {"loading": seconds}, **changes)


def test_a_metric_of_another_distribution_is_in_every_table_and_file(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "LOADING")
    found = report(loaded(3.0), row("x", 0.05, {"compile": "default"}))
    content = reports_content([found], lambda *_: "")
    assert tidy(found)[0]["loading_s"] == 3.0
    assert [line["loading_s"] for line in csv.DictReader(io.StringIO(render(content, "csv")))] == ["3.0", ""]
    assert "| loading s |" in render(content, "markdown")
    assert "loading s" in on_screen(content, 80)
    series, _ = history([("r.json", found)], "loading")
    assert (series.unit, [point.value for point in series.points]) == ("s", [3.0])


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [(3.0, 3.4, "regressed"), (3.0, 3.2, "unchanged"), (3.0, 2.0, "improved"), (3.0, None, "inconclusive")],
)
def test_check_judges_it_by_its_limit(
    monkeypatch: pytest.MonkeyPatch, before: float, after: float | None, verdict: Verdict
) -> None:
    install(monkeypatch, "LOADING")
    found = check(NamedReport("new", report(loaded(after))), NamedReport("old", report(loaded(before))), Limits())
    assert found.verdict == verdict
    (finding,) = [one for one in found.rows[0].findings if one.metric == "loading"]
    assert finding.verdict == verdict
    if verdict == "regressed":
        assert "baseline: loading regressed: Loading 3.40 s, was 3.00 s." in render(checks_content([found]), "markdown")


def test_a_metric_that_should_rise_regresses_when_it_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "RISING")
    sides = [NamedReport(str(value), report(loaded(value))) for value in (2.0, 3.0)]
    assert check(sides[0], sides[1], Limits()).verdict == "regressed"
    assert check(sides[1], sides[0], Limits()).verdict == "improved"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("RIVAL", "The metric name 'fps' of entry point 'RIVAL'"),
        ("SAME_COLUMN", "The metric name 'peak_memory_bytes' of entry point 'SAME_COLUMN'"),
        ("NO_METRIC", "is of type str, not Metric"),
        ("ABSENT", "cannot be loaded: AttributeError"),
    ],
)
def test_a_broken_or_clashing_metric_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, name)
    with pytest.raises(GpubenchError) as caught:
        all_metrics()
    assert words in str(caught.value)
    save(ladder_report(), tmp_path / "r.json")
    assert run(["report", str(tmp_path / "r.json")]) == 2
    shown = capsys.readouterr()
    assert words in shown.err and shown.err.count("\n") == 1 and shown.out == ""


def test_an_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(GpubenchError, match="Did you mean 'peak_memory'"):
        get("peak_memry")


def test_names_columns_limits_and_units_are_sound() -> None:
    for field in ("name", "column"):
        values = [getattr(metric, field) for metric in BUNDLED]
        assert len(set(values)) == len(values)
    for metric in gated():
        assert metric.better is not None
        assert metric.statistic is None or metric.statistic in get_args(Statistic)
        assert not isinstance(metric.limit, str) or metric.limit in Limits.__struct_fields__
        assert Limits().share(metric, "cpu") >= 0
    assert {metric.unit for metric in BUNDLED} <= {"", "1/s", *metrics.SUFFIXES}


def test_every_metric_of_a_row_with_all_readings_is_read() -> None:
    reading = Reading(mean=5.0, min=5.0, max=5.0, count=9)
    used = Utilization(
        gpu_utilization_percent=reading,
        process_cpu_percent=reading,
        power_watts=reading,
        energy_per_item_joules=5.0,
    )
    counts = StepCounts(
        operators=5, kernels=5, flops=5, bytes_allocated=5, frames_compiled=5, recompiles=5, copies_to_device=5,
        synchronizations=5, work={"bf16": 1.0},
    )  # fmt: skip
    values = ValueRange(dtypes=["float16"], largest_activation=5.0, largest_in="head", near_overflow=0.5, subnormal=0.5)
    found = ladder_report()
    rows = [
        msgspec.structs.replace(
            each,
            utilization=used,
            host_bound_fraction=0.5,
            graph_breaks=5,
            counts=counts,
            load_time_s=5.0,
            load_peak_bytes=5,
            value_range=values,
        )
        for each in found.measurements
    ]
    record = next(each for each in tidy(msgspec.structs.replace(found, measurements=rows)) if each["id"] == "all")
    assert [metric.name for metric in BUNDLED if record[metric.column] is None] == []
    assert [record[name] for name in ("gpu_utilization_percent", "power_watts", "energy_per_item_joules")] == [5.0] * 3


def test_no_metric_of_a_row_that_failed_is_a_number() -> None:
    found = report(baseline(), row("oom", None, {"compile": "default"}, status="oom"))
    record = tidy(found)[1]
    assert {record[metric.column] for metric in BUNDLED} == {None}


def test_history_offers_every_metric_that_can_get_better(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["history", "--help"]) == 0
    shown = re.sub(r"[\s│]", "", capsys.readouterr().out)
    assert "latency_p95,latency_ci_low" in shown and "energy_per_item,oraplug-in's" in shown


def test_the_error_of_several_outputs_names_the_worst() -> None:
    judged = [OutputQuality(name=f"output.{name}", passed=True, note="") for name in ("scores", "boxes")]
    one = row("x", 0.1)
    assert one.quality is not None
    several = msgspec.structs.replace(one, quality=msgspec.structs.replace(one.quality, outputs=judged))
    loaded = report(baseline(), one, several)
    cells = [get("quality").text(loaded, Row(each)) for each in (one, several)]
    assert cells == ["1.2e-03", "1.2e-03 scores"]
    assert [each["worst_output"] for each in tidy(loaded)] == [None, None, "output.scores"]
