"""Rows over time: planted shifts are found where they are, and noise alone is none."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec
import pytest

from gpubench.regression.trends import change_points, history
from gpubench.report.model import Adoption, Report
from tests.reports import GPU, baseline, report, row


def at(day: int, step_s: float | None, torch: str = "2.13.0", **options: object) -> tuple[str, Report]:
    """The report of one day; `step_s` None: the row failed."""
    if step_s is None:
        fast = row("fast", None, {"channels_last": "on"}, status="oom", reason="planted")
    else:
        fast = row("fast", step_s, {"channels_last": "on"}, memory_mib=1000 * step_s / 0.1)
    found = report(baseline(0.2), fast, created_at=f"2026-01-{day:02}T00:00:00+00:00", **options)  # type: ignore[arg-type]
    environment = msgspec.structs.replace(found.environment, torch=torch)
    return f"day-{day:02}.json", msgspec.structs.replace(found, environment=environment)


def days(steps: Sequence[float | None]) -> list[tuple[str, Report]]:
    return [at(day, step_s) for day, step_s in enumerate(steps, start=1)]


def wobbling(level: float, count: int, seed: int, noise: float = 0.01) -> list[float]:
    chance = random.Random(seed)
    return [level * (1 + chance.gauss(0, noise)) for _ in range(count)]


def test_a_shift_is_found_where_it_is_with_its_size() -> None:
    found = {one.id: one for one in history(days([*wobbling(0.1, 8, 1), *wobbling(0.11, 7, 2)]))}
    (shift,) = found["fast"].shifts
    assert (shift.at, shift.source) == ("2026-01-09T00:00:00+00:00", "day-09.json")
    assert shift.change == pytest.approx(1 / 1.1 - 1, abs=0.015)
    assert shift.before == pytest.approx(80, rel=0.015)
    assert found["fast"].noise == pytest.approx(0.01, rel=0.6)
    assert found["baseline"].shifts == []  # exact figures without a shift are none either


def test_a_run_counts_once_and_sides_of_a_comparison_do_not() -> None:
    reports = days([0.1, 0.1, 0.1])
    adopted = msgspec.structs.replace(reports[1][1], adopted=Adoption(at="", reason="x", replaces=None))
    side = msgspec.structs.replace(at(9, 0.5)[1], session="s")
    for extra in ([("baseline.json", adopted), ("b.json", side)], []):
        (series,) = [one for one in history([*extra, *reports]) if one.id == "fast"]
        assert [point.source for point in series.points] == ["day-01.json", "day-02.json", "day-03.json"]


def test_two_shifts_are_two() -> None:
    steps = [*wobbling(0.1, 7, 3), *wobbling(0.12, 7, 4), *wobbling(0.09, 7, 5)]
    (series,) = [one for one in history(days(steps)) if one.id == "fast"]
    assert [shift.source for shift in series.shifts] == ["day-08.json", "day-15.json"]


def test_a_shift_below_the_asked_size_is_not_told() -> None:
    reports = days([*wobbling(0.1, 8, 1), *wobbling(0.11, 7, 2)])
    (series,) = [one for one in history(reports, min_shift=0.2) if one.id == "fast"]
    assert series.shifts == []


@pytest.mark.parametrize("count", [6, 12, 30])
def test_noise_alone_is_rarely_a_shift(count: int) -> None:
    chance = random.Random(count)
    hits = sum(bool(change_points([chance.gauss(0, 0.02) for _ in range(count)])) for _ in range(400))
    assert hits / 400 <= 0.08


@pytest.mark.parametrize("count", [8, 12, 30])
def test_a_shift_of_five_deviations_is_mostly_found(count: int) -> None:
    chance = random.Random(count)
    half = count // 2
    hits = 0
    for _ in range(200):
        found = change_points([chance.gauss(5.0 * (index >= half), 1.0) for index in range(count)])
        hits += any(abs(index - half) <= 1 for index in found)
    assert hits / 200 >= 0.80


def test_reports_are_sorted_by_time_and_failures_are_shown() -> None:
    (series,) = [one for one in history(days([0.1, None, 0.1])[::-1]) if one.id == "fast"]
    assert [point.source for point in series.points] == ["day-01.json", "day-02.json", "day-03.json"]
    assert [(point.status, point.value) for point in series.points][1] == ("oom", None)
    assert series.noise is None


def test_devices_and_versions_have_series_of_their_own() -> None:
    other = msgspec.structs.replace(GPU, uuid="GPU-1")
    reports = [at(1, 0.1), at(2, 0.1, device=other), at(3, 0.1, torch="2.14.0"), at(4, 0.1, mode="training")]
    assert len([one for one in history(reports) if one.id == "fast"]) == 4
    assert len([one for one in history(reports, across_versions=True) if one.id == "fast"]) == 3


def test_a_shift_that_came_with_an_upgrade_says_so() -> None:
    steps = [*wobbling(0.1, 6, 1), *wobbling(0.08, 6, 2)]
    reports = [at(day, step_s, "2.13.0" if day <= 6 else "2.14.0") for day, step_s in enumerate(steps, start=1)]
    assert all(not one.shifts for one in history(reports) if one.id == "baseline")
    (series,) = [one for one in history(reports, across_versions=True) if one.id == "fast"]
    (shift,) = series.shifts
    assert shift.versions == "2.13.0 to 2.14.0"
    assert shift.change == pytest.approx(0.25, abs=0.03)


def test_other_metrics() -> None:
    reports = days([*wobbling(0.1, 6, 1), *wobbling(0.2, 6, 2)])
    for metric, change in (("latency_p95", 1.0), ("peak_memory", 1.0), ("compile_time", None)):
        (series,) = [one for one in history(reports, metric) if one.id == "fast"]  # type: ignore[arg-type]
        found = [shift.change for shift in series.shifts]
        assert found == ([pytest.approx(change, abs=0.03)] if change else [])
