"""Stopped in the middle, by whatever means: what was measured is safe, nothing is left running, and it can go on."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from gpubench.report import store
from gpubench.report.model import Report
from tests.faults import fault_toggle
from tests.running import BUSY, ROOT, gpubench_here, processes_mentioning, start, wait_for_rows, wait_until_gone

WORKLOADS = Path(__file__).with_name("fault_models.py")
COMMAND = ["--set", "threads=1", "--set", "precision=bf16-autocast", "--strategy", "each", "--final-rounds", "0"]
COMMAND += ["--seed", "1"]  # the order of measuring: threads=1 before the one that hangs


def assert_stopped(process: subprocess.Popen[str], number: signal.Signals, folder: Path) -> Report:
    """`process` ended by the signal, with nothing left but a valid, unfinished report; that report."""
    _, errors = process.communicate(timeout=60)
    assert wait_until_gone(str(folder / "scratch")) == []
    report = store.load(folder / "report.json")
    assert report.finished_at is None
    assert report.measurements[0].status == "ok"
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number
        assert "--resume --output report.json" in errors
        assert "Traceback" not in errors
        assert list((folder / "scratch").glob("gpubench-*")) == []
    return report


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_leaves_a_valid_report_and_no_processes(number: signal.Signals, tmp_path: Path) -> None:
    command = ["compare-opts", f"{WORKLOADS}:hangs_in_bf16", *COMMAND, "--output", "report.json"]
    process = start(*command, cwd=tmp_path)
    wait_for_rows(tmp_path / "report.json", 2)
    process.send_signal(number)
    assert_stopped(process, number, tmp_path)


def test_ctrl_c_while_the_command_line_is_loaded_is_silent(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import time\nprint('loading', flush=True)\ntime.sleep(600)\n")
    process = start("doctor", cwd=tmp_path, env={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert process.stdout is not None
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == -signal.SIGINT  # a shell says 130


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_is_stopped_while_several_workers_race(number: signal.Signals, tmp_path: Path) -> None:
    process = start(
        "compare-opts", f"{WORKLOADS}:leisurely", "--set", "fault=fast,as-fast", "--fix", "threads=1", "--strategy",
        "each", "--final-rounds", "1000", *BUSY, "--output", "report.json", cwd=tmp_path,
        env=fault_toggle.install(tmp_path),
    )  # fmt: skip
    wait_for_a_round_of_several(tmp_path)
    process.send_signal(number)
    report = assert_stopped(process, number, tmp_path)
    assert [row.status for row in report.measurements] == ["ok", "ok", "ok"]  # nobody is blamed for being stopped
    assert any(part.phase != "explore" for row in report.measurements for part in row.rounds)


def wait_for_a_round_of_several(folder: Path) -> None:
    """Waits until a round of runoff or final is in the report and the workers of the next one run."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        time.sleep(0.05)
        if not (folder / "report.json").exists():
            continue
        rows = store.load(folder / "report.json").measurements
        extra = any(part.phase != "explore" for row in rows for part in row.rounds)
        if extra and len(processes_mentioning(str(folder / "scratch"))) >= 4:  # the tool, its server, two workers
            time.sleep(0.5)  # all are started by then, and one of them is being asked
            return
    raise AssertionError("no round of several workers in time")


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    command = ["compare-opts", f"{WORKLOADS}:paced", *COMMAND, "--output", "report.json"]
    process = start(*command, cwd=tmp_path)
    wait_for_rows(tmp_path / "report.json", 2)
    process.kill()
    process.communicate()
    kept = store.load(tmp_path / "report.json").measurements
    done = gpubench_here(*command, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = store.load(tmp_path / "report.json")
    assert report.finished_at is not None
    assert [row.id for row in report.measurements] == ["baseline", "threads=1", "precision=bf16-autocast"]
    for before, after in zip(kept, report.measurements, strict=False):
        assert before.samples_s == after.samples_s
