"""Planted faults of reports: nothing to advise on, another machine, disks that fill up, files that change meanwhile."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpubench.report import store
from tests.running import BUSY, MODELS, gpubench_here, start, wait_for_rows

WORKLOADS = Path(__file__).with_name("fault_models.py")
SHORT = ["--set", "threads=1", "--strategy", "each", "--final-rounds", "0", *BUSY]
COMMAND = ["compare-opts", f"{WORKLOADS}:paced", *SHORT, "--output", "report.json"]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A finished report, whose recommendation stands, as JSON."""
    folder = tmp_path_factory.mktemp("reports")
    done = gpubench_here(*COMMAND, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert gpubench_here("recommend", "report.json", cwd=folder).returncode == 0
    return (folder / "report.json").read_text()


def without_rows(report: Any) -> None:
    report["measurements"] = []


def without_baseline(report: Any) -> None:
    report["measurements"] = [row for row in report["measurements"] if row["id"] != report["plan"]["baseline"]]


def without_figures_of_the_baseline(report: Any) -> None:
    report["measurements"][0] |= {"samples_s": [], "rounds": [], "latency_s": None, "fps": None}


def without_samples_of_the_baseline(report: Any) -> None:
    report["measurements"][0] |= {"samples_s": [], "rounds": []}  # its latency is claimed still


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (without_rows, "the report has no measurements"),
        (without_baseline, "has no row for its baseline, 'baseline'"),
        (without_figures_of_the_baseline, "the baseline is not reliable"),
        (without_samples_of_the_baseline, "measurements[0] has a latency and no samples"),
    ],
)
def test_there_is_no_advice_without_a_baseline(
    plant: Callable[[Any], None], words: str, real: str, tmp_path: Path
) -> None:
    report = json.loads(real)
    plant(report)
    (tmp_path / "report.json").write_text(json.dumps(report))
    done = gpubench_here("recommend", "report.json", "--output", "best.toml", cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not (tmp_path / "best.toml").exists()


def without_a_row(report: Any) -> None:
    del report["measurements"][1]


def without_figures(report: Any) -> None:
    for row in report["measurements"]:
        row |= {"samples_s": [], "rounds": [], "latency_s": None, "fps": None}


def on_another_machine(report: Any) -> None:
    report["device"]["name"] = "another device"


@pytest.mark.parametrize(
    ("plant", "code", "words"),
    [
        (without_a_row, 1, "threads=1: status regressed: It is missing from the current report."),
        (without_rows, 1, "It is missing from the current report."),
        (without_figures, 4, "figure is not reliable: it has no latency above 0 s"),
        (on_another_machine, 3, "these differ: device: "),
    ],
)
@pytest.mark.parametrize("damaged", ["current", "baseline"])
def test_a_check_never_passes_on_what_is_not_there(
    plant: Callable[[Any], None], code: int, words: str, damaged: str, real: str, tmp_path: Path
) -> None:
    """A row that is missing from the baseline is new, and no reason to fail; with no row at all nothing is compared."""
    planted = json.loads(real)
    plant(planted)
    other = "baseline" if damaged == "current" else "current"
    (tmp_path / f"{damaged}.json").write_text(json.dumps(planted))
    (tmp_path / f"{other}.json").write_text(real)
    done = gpubench_here("check", "current.json", "--baseline", "baseline.json", "--max-slowdown", "90%", cwd=tmp_path)
    shown = " ".join(done.stdout.split())
    if damaged == "baseline" and plant is without_a_row:
        assert "1 row is new: threads=1." in shown
    elif damaged == "baseline" and plant is without_rows:
        assert done.returncode == 3
        assert "No row of the baseline ran in both reports." in shown
    else:
        assert done.returncode == code, done.stdout
        assert words in shown


def test_a_report_of_another_machine_is_refused(real: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    document = json.loads(real)
    document["device"]["name"] = "another device"
    document["workload"]["batch_size"] = 7
    document["tool"]["version"] = "0.0.1"
    path.write_text(json.dumps(document))
    before = path.read_bytes()
    done = gpubench_here(*COMMAND, "--resume", cwd=tmp_path)
    assert done.returncode == 2
    for words in (
        "device.name: 'another device'",
        "workload.batch_size: 7 in the report, 4 now",
        "tool.version: '0.0.1'",
    ):
        assert words in done.stderr
    assert path.read_bytes() == before


@pytest.mark.slow
def test_a_disk_that_fills_up_ends_no_run(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    process = start(
        "compare-opts", f"{WORKLOADS}:leisurely", "--set", "threads=1", "--set", "precision=bf16-autocast",
        "--strategy", "each", "--final-rounds", "0", *BUSY, "--output", "report.json", cwd=tmp_path,
    )  # fmt: skip
    wait_for_rows(path, 1)
    # No file of the tool's own may become longer than the report is now: the disk is full, for root too.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (path.stat().st_size, resource.RLIM_INFINITY))
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "precision=bf16-autocast" in said  # measured afterwards, and shown
    assert "the run continues" in errors
    assert "could not be saved" in errors.splitlines()[-1]
    assert "File too large" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    safe = store.load(path)  # what was saved before is whole
    assert [(row.id, row.status) for row in safe.measurements] == [("baseline", "ok")]
    assert len(safe.measurements[0].samples_s) > 0
    assert [one.name for one in tmp_path.glob("*report*")] == ["report.json"]  # no half of a file is left


def test_a_file_that_changes_during_the_run_is_noticed(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    # The step of the first row rewrites the file, as an editor would.
    own.write_text(
        f"{MODELS.read_text()}\n\ndef edited():\n    open({str(own)!r}, 'a').write('# edited\\n')\n    return good()\n"
    )
    done = gpubench_here("compare-opts", "own.py:edited", *SHORT, "--output", "report.json", cwd=tmp_path)
    assert "changed during the run" in done.stdout + done.stderr
    assert done.returncode == 1
