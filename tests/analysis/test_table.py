from __future__ import annotations

import pandas as pd
import pytest

from gpubench.analysis.table import frame, lines, names, rows
from tests.reports import baseline, ladder_report, report, row


def test_one_row_a_measurement_with_figures_and_configuration() -> None:
    found = ladder_report()
    data = frame(found)
    assert len(data) == len(found.measurements)
    assert list(data.columns)[: len(names())] == names()
    line = data[data["id"] == "bf16"].iloc[0]
    assert line["fps"] == pytest.approx(8 / 0.06)
    assert line["speedup"] == pytest.approx(0.1 / 0.06)
    assert line["configuration.precision"] == "bf16-autocast"
    assert line["roles"] == "alone:precision ladder:precision"


def test_what_was_not_measured_is_missing_and_never_zero() -> None:
    line = frame(ladder_report()).set_index("id").loc["oom"]
    for name in ("fps", "latency_median_s", "peak_memory_bytes", "compile_time_s", "speedup", "relative_error"):
        assert pd.isna(line[name])


def test_whole_numbers_stay_whole_beside_missing_ones() -> None:
    data = frame(report(baseline(), row("b", 0.05, {"batch_size": 4}))).set_index("id")
    assert repr(data.loc["b", "configuration.batch_size"]) == "4"
    assert data.loc["baseline", "configuration.batch_size"] is None


def test_several_reports_share_one_frame() -> None:
    other = report(baseline(), row("new", 0.05, {"threads": 2}), name="unet3d")
    data = frame(ladder_report(), other)
    assert set(data["workload"]) == {"vae", "unet3d"}
    assert len(data) == len(ladder_report().measurements) + 2
    assert len(frame()) == len(frame(report())) == 0


def test_only_rows_to_rely_on_have_a_speedup() -> None:
    found = {each.measurement.id: each.speedup for each in rows(ladder_report())}
    assert found["wrong"] is found["idle"] is found["oom"] is found["tf32"] is found["baseline"] is None
    assert found["all"].phase == "final"
    unsteady = baseline(flags=["unsteady"])
    assert all(each.speedup is None for each in rows(report(unsteady, row("x", 0.05))))


def test_every_row_that_ran_stands_in_a_group_and_rungs_follow_their_steps() -> None:
    found = ladder_report()
    grouped = lines(found)
    shown = {line.row.measurement.id for group in grouped.values() for line in group}
    assert shown == {each.id for each in found.measurements if each.status != "skipped"}
    assert [line.label for line in grouped["ladder"]] == [
        "+ precision=bf16-autocast",
        "+ channels_last=on",
        "+ compile=default",
    ]
    assert next(line.label for line in grouped["alone"]) == "precision=bf16-autocast"
