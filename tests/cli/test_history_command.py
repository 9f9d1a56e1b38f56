"""`gpubench history` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from gpubench.cli.main import run
from gpubench.report.store import save
from tests.reports import HOSTILE, ROLES, baseline, hostile_report, report, row


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for day in range(1, 13):
        wobble = 1 + 0.002 * (-1) ** (day // 2)
        found = report(baseline(wobble * (0.1 if day <= 6 else 0.12)), created_at=f"2026-01-{day:02}T00:00:00+00:00")
        save(found, tmp_path / f"{day:02}.json")
    return tmp_path


def test_the_table_draws_the_row_and_names_the_shift(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # wide enough for the path
    assert run(["history", str(folder)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "vae inference, tiny, on NVIDIA Test GPU (GPU-0), torch 2.13.0: FPS" in shown
    assert "██" in shown and "▁▁" in shown
    assert "baseline: -16.7% at 2026-01-07T00:00:00+00:00" in shown
    assert "07.json" in shown


def test_json_and_markdown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["history", str(folder), "--format", "json"]) == 0
    (series,) = json.loads(capsys.readouterr().out)
    assert len(series["points"]) == 12
    assert len(series["shifts"]) == 1
    assert run(["history", str(folder), "--format", "markdown"]) == 0
    assert "| baseline | 12 | 79.8 |" in capsys.readouterr().out


def test_few_reports_say_that_they_are_few(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["history", str(folder / "01.json"), str(folder / "02.json")]) == 0
    assert "1 row has fewer than 4 figures" in capsys.readouterr().out


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    for day in range(1, 6):
        found = hostile_report(text)
        save(msgspec.structs.replace(found, created_at=f"2026-01-{day:02}"), tmp_path / f"{day}.json")
    for format_ in ("table", "markdown", "json"):
        assert run(["history", str(tmp_path), "--format", format_]) == 0
        shown = capsys.readouterr().out
        assert "\x1b" not in shown
        assert format_ != "markdown" or "<script>" not in shown


def test_what_is_no_time_is_refused_and_runs_of_one_second_are_two(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads((folder / "01.json").read_text())
    (tmp_path / "bad.json").write_text(json.dumps({**document, "created_at": "yesterday"}))
    save(report(baseline(0.5), created_at="2026-01-01T00:00:00+00:00"), tmp_path / "other.json")
    save(
        report(baseline(0.1), created_at="2026-01-02T09:00:00+14:00"), tmp_path / "zone.json"
    )  # the day before, in UTC
    assert run(["history", str(folder), "--format", "json"]) == 0
    shown = capsys.readouterr()
    assert "bad.json is not a valid report: created_at 'yesterday' is not a date and time." in shown.err
    (series,) = json.loads(shown.out)
    assert len(series["points"]) == 14
    assert [point["at"][:10] for point in series["points"]][:4] == [
        "2026-01-01",
        "2026-01-01",
        "2026-01-02",
        "2026-01-02",
    ]
    assert [Path(point["source"]).name for point in series["points"]][2] == "zone.json"


def test_the_control_of_a_duel_is_no_point_of_the_baselines_series(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two figures of one minute would make neighbouring runs look alike."""
    for day in range(1, 7):
        control = row("control", 0.1, roles=[ROLES["control"]])
        found = report(baseline(0.1 * 1.1 ** (day % 2)), control, created_at=f"2026-01-{day:02}T00:00:00+00:00")
        save(found, tmp_path / f"{day}.json")
    assert run(["history", str(tmp_path), "--format", "json"]) == 0
    (series,) = json.loads(capsys.readouterr().out)
    assert (series["id"], len(series["points"])) == ("baseline", 6)
    assert series["noise"] > 0.05


def test_bad_input_is_one_sentence(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], [str(tmp_path / "none")], [str(folder), "--min-shift", "x"], [str(folder), "--metric", "x"]):
        assert run(["history", *arguments]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
