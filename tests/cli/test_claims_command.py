"""`gpubench claims`: measures what is missing, reads what is there."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import msgspec
import pytest

from gpubench.analysis import guides
from gpubench.analysis.guides import Guide
from gpubench.cli.main import run as gpubench
from gpubench.report import store
from gpubench.study import launch_claims
from tests.running import BUSY

GUIDE = {
    "name": "short",
    "title": "a guide",
    "claim": [
        {
            "id": "bf16", "technique": "bf16", "mode": "inference", "speedup_low": 0.01, "speedup_high": 100.0,
            "measure": [{"workload": "resnet50", "on": {"precision": "bf16-autocast"}}],
        },
        {
            "id": "both", "technique": "both", "mode": "inference", "expects": "faster",
            "measure": [
                {"workload": "resnet50", "on": {"channels_last": "on"}, "off": {"precision": "bf16-autocast"}},
                {"workload": "resnet50", "on": {"cudnn_benchmark": "on"}, "devices": ["cuda"]},
            ],
        },
        {"id": "advice", "technique": "advice", "mode": "both", "unmeasured": "It is advice."},
    ],
}  # fmt: skip


@pytest.fixture(autouse=True)
def guide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(guides, "all_guides", lambda: {"short": msgspec.convert(GUIDE, Guide)})


def test_what_would_be_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpubench(["claims", "short", "--dry-run", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == (
        "measure  resnet50 inference: baseline; precision=bf16-autocast; channels_last=on\n"
    )
    assert gpubench(["claims", "shrt", "--dry-run"]) == 2
    assert "Did you mean 'short'?" in capsys.readouterr().err


def test_claims_are_measured_once_and_read_again(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["claims", "short", "--size", "tiny", "--rounds", "1", "--device", "cpu", "--format", "json"]
    command += BUSY
    assert gpubench(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(each["id"], each["mode"]) for each in found] == [
        ("bf16", "inference"), ("both", "inference"), ("advice", "inference"), ("advice", "training"),
    ]  # fmt: skip
    assert [each["verdict"] for each in found[2:]] == ["not measurable here"] * 2
    assert found[0]["rounds"] == 1 and found[0]["speedup"] > 0
    assert (found[1]["row"], found[1]["versus"]) == ("channels_last=on", "precision=bf16-autocast")
    path = launch_claims.RUNS / "resnet50-inference-tiny.json"
    first = store.load(path)
    ((request, ways),) = launch_claims.ClaimsRequest(name="short", device="cpu", size="tiny", rounds=1).runs()
    assert launch_claims.answers(first, request, ways)
    for other in ({"rounds": 2}, {"seed": 1}, {"device": "cuda:0"}):  # what would measure something else
        assert not launch_claims.answers(first, dataclasses.replace(request, **other), ways)
    assert launch_claims.name_of(dataclasses.replace(request, size="auto")) == "resnet50-inference.json"
    assert [row.id for row in first.measurements] == ["baseline", "precision=bf16-autocast", "channels_last=on"]

    assert gpubench(command) == 0  # again: nothing is measured
    again = capsys.readouterr()
    assert json.loads(again.out) == found
    assert "has it already" in again.err
    assert store.load(path) == first

    assert gpubench(["claims", "short", str(path.parent), "--format", "markdown"]) == 0
    assert "| bf16 | inference |" in capsys.readouterr().out

    unfinished = msgspec.structs.replace(first, finished_at=None, measurements=first.measurements[:2])
    store.save(unfinished, path)
    assert gpubench(command) == 0  # it goes on where it was stopped
    assert len(json.loads(capsys.readouterr().out)) == 4
    done = store.load(path)
    assert done.finished_at is not None
    assert [row.id for row in done.measurements] == [row.id for row in first.measurements]
    assert done.measurements[1] == first.measurements[1]


def test_a_folder_without_reports(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert gpubench(["claims", "empty"]) == 2
    assert "holds no report" in capsys.readouterr().err
    assert gpubench(["claims", "short", "nowhere.json"]) == 2
    assert "nowhere.json" in capsys.readouterr().err
