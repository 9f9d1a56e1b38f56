"""`--dry-run` says what would be measured and skipped, and writes nothing; other formats of a run."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from gpubench.cli.main import run

GOOD = str(Path(__file__).parents[1] / "study" / "models.py") + ":good"


def test_dry_run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["compare-opts", GOOD, "--device", "cpu", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "measure  baseline" in said
    assert "measure  allocator=tuned" in said
    assert "skip     precision=tf32 needs a CUDA device" in said
    assert "no       tile_size" in said
    assert list(tmp_path.iterdir()) == []


def test_dry_run_of_a_grid_with_a_fixed_toggle_as_json(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    matrix = tmp_path / "mine.toml"
    matrix.write_text(
        "name='mine'\nsummary='two axes'\nstrategy='grid'\n[fix]\nbatch_size=2\n"
        "[[technique]]\ntoggle='precision'\nvalues=['bf16-autocast']\n[[technique]]\ntoggle='threads'\nvalues=[1]\n"
    )
    arguments = ["compare-opts", GOOD, "--device", "cpu", "--matrix", "mine.toml", "--dry-run", "--format", "json"]
    assert run(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["strategy"] == "grid"
    assert len(found["configurations"]) == 4
    assert all(one["configuration"]["batch_size"] == 2 for one in found["configurations"])


def test_a_run_as_csv_has_a_row_for_each_measurement(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["batch-sweep", GOOD, "--device", "cpu", "--sizes", "1", "2", "--format", "csv", "--quiet"]
    assert run(arguments) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    rows = list(csv.DictReader(io.StringIO(captured.out)))
    assert [row["id"] for row in rows] == ["batch_size=1", "batch_size=2"]
    assert all(float(row["fps"]) > 0 for row in rows)
    assert len(list(tmp_path.glob("gpubench-runs/*/good-inference-*.json"))) == 1


@pytest.mark.slow
def test_a_tile_sweep_goes_past_tiles_that_cannot_be(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["tile-sweep", "vae", "--size", "tiny", "--param", "task=decode", "--device", "cpu", "--sizes", "16",
                 "20", "0", "--overlaps", "8", "--format", "json", "--quiet"]  # fmt: skip
    assert run(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    statuses = [(row["configuration"]["tile_size"], row["status"]) for row in report["measurements"]]
    assert statuses == [(16, "ok"), (20, "skipped"), (0, "ok")]
    assert report["workload"]["parameters"]["task"] == "decode"
    assert report["sweep"]["largest_fitting"] == 0
