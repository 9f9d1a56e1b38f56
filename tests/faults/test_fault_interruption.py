"""Stopped in the middle, by whatever means: what was measured is safe, nothing is left running, and it can go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpubench.results import store
from tests.runner.conftest import ROOT, gpubench
from tests.runner.test_failures import processes_mentioning

COMMAND = ["--set", "threads=1", "--set", "precision=bf16-autocast", "--strategy", "each", "--duel-rounds", "0"]
COMMAND += ["--seed", "1"]  # the order of measuring: threads=1 before the one that hangs


def start(models: Path, folder: Path, model: str) -> subprocess.Popen[str]:
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "gpubench", "compare-opts", f"{models}:{model}", *COMMAND, "--output", "report.json"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests themselves run in a script's background, SIGINT is ignored and would stay so.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_rows(path: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if path.exists() and len(store.load(path).measurements) >= count:
            return
        time.sleep(0.05)
    raise AssertionError(f"no {count} rows in {path} in time")


def wait_until_gone(text: str) -> list[str]:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if not (found := processes_mentioning(text)):
            return []
        time.sleep(0.1)
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_leaves_a_valid_report_and_no_processes(
    number: signal.Signals, models: Path, tmp_path: Path
) -> None:
    process = start(models, tmp_path, "hangs_in_bf16")
    wait_for_rows(tmp_path / "report.json", 2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert wait_until_gone(str(tmp_path / "scratch")) == []
    report = store.load(tmp_path / "report.json")
    assert report.finished_at is None
    assert report.measurements[0].status == "ok"
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number
        assert "--resume --output report.json" in errors
        assert "Traceback" not in errors
        assert list((tmp_path / "scratch").glob("gpubench-*")) == []


def test_a_killed_run_goes_on_where_it_was(models: Path, tmp_path: Path) -> None:
    process = start(models, tmp_path, "good")
    wait_for_rows(tmp_path / "report.json", 2)
    process.kill()
    process.communicate()
    kept = store.load(tmp_path / "report.json").measurements
    done = gpubench("compare-opts", f"{models}:good", *COMMAND, "--output", "report.json", "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = store.load(tmp_path / "report.json")
    assert report.finished_at is not None
    assert [row.id for row in report.measurements] == ["baseline", "threads=1", "precision=bf16-autocast"]
    for before, after in zip(kept, report.measurements, strict=False):
        assert before.samples_s == after.samples_s


def test_an_unlike_report_is_refused(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    command = ["compare-opts", f"{models}:good", "--set", "threads=1", "--strategy", "each", "--duel-rounds", "0"]
    first = gpubench(*command, "--output", "report.json", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    document = json.loads(path.read_text())
    document["device"]["name"] = "another device"
    document["workload"]["batch_size"] = 7
    document["tool"]["version"] = "0.0.1"
    path.write_text(json.dumps(document))
    before = path.read_bytes()
    done = gpubench(*command, "--output", "report.json", "--resume", cwd=tmp_path)
    assert done.returncode == 2
    for words in ("device.name: 'another device'", "workload.batch_size: 7 against 4", "tool.version: '0.0.1'"):
        assert words in done.stderr
    assert path.read_bytes() == before


def test_scratch_of_a_killed_run_is_removed_by_the_next(models: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (scratch / f"gpubench-run-{dead.pid}-x").mkdir()
    (scratch / f"gpubench-run-{os.getpid()}-x").mkdir()
    done = gpubench("compare-opts", f"{models}:good", "--dry-run", cwd=tmp_path, env={"TMPDIR": str(scratch)})
    assert done.returncode == 0, done.stderr
    assert [path.name for path in scratch.glob("gpubench-run-*")] == [f"gpubench-run-{os.getpid()}-x"]
