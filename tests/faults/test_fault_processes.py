"""Whatever a configuration does, it becomes a row, and the rows after it are measured as if nothing had happened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gpubench.results.store import json_schema
from tests.runner.conftest import MODELS, gpubench

CASES = {
    41: ("crashed", "SIGSEGV"),
    42: ("crashed", "SIGKILL"),
    43: ("crashed", "code 3"),
    44: ("crashed", "worker"),
    45: ("failed", "ValueError: the [red]user's[/red] own mistake"),
    46: ("oom", "allocate"),
    47: ("wrong", "not finite"),
    48: ("wrong", "relative error"),
    49: ("wrong", "norm"),
    50: ("wrong", "last timed step"),
    51: ("wrong", "shape"),
    52: ("timeout", "15 s"),
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One run in which every row but the first and the last misbehaves in its own way."""
    folder, numbers = tmp_path_factory.mktemp("faults"), ",".join(map(str, [*CASES, 53]))
    done = gpubench(
        "compare-opts", f"{MODELS}:faults", "--set", f"threads={numbers}", "--strategy", "each", "--timeout", "15s",
        "--duel-rounds", "1", "--format", "json", "--output", "report.json", cwd=folder, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads((folder / "report.json").read_text())
    return found


def row_of(report: Any, threads: int) -> Any:
    return next(row for row in report["measurements"] if row["id"] == f"threads={threads}")


@pytest.mark.parametrize("threads", CASES)
def test_a_failure_is_a_row(threads: int, report: Any) -> None:
    row, (status, words) = row_of(report, threads), CASES[threads]
    assert row["status"] == status
    assert words in row["reason"]
    assert row["reason"].endswith(".")
    assert "\n" not in row["reason"]
    if status != "wrong":
        assert row["fps"] is None
        assert row["samples_s"] == []


def test_the_rows_around_failures_are_good(report: Any) -> None:
    assert report["measurements"][0]["status"] == "ok"
    last = row_of(report, 53)
    assert last["status"] == "ok"
    assert last["fps"] > 0
    assert last["quality"]["relative_error"] == report["measurements"][0]["quality"]["relative_error"]
    assert report["finished_at"] is not None


def test_a_failed_row_is_never_recommended(report: Any) -> None:
    assert report["recommendation"]["id"] in ("baseline", "threads=53")
    assert not set(report["recommendation"]["tied_with"]) & {f"threads={number}" for number in CASES}


def test_the_log_of_a_failed_row_is_kept(report: Any) -> None:
    row = row_of(report, 45)
    assert "about to fail" in row["log_tail"]
    assert "ValueError" in row["log_tail"]


def test_the_report_fits_its_schema(report: Any) -> None:
    jsonschema.validate(report, json_schema())


def test_memory_is_limited_on_a_cpu(models: Path, tmp_path: Path) -> None:
    done = gpubench(
        "batch-sweep", f"{models}:hungry", "--sizes", "1", "64", "2", "--max-memory", "3GiB", "--format", "json",
        "--output", "report.json", cwd=tmp_path,
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert [(row["id"], row["status"]) for row in report["measurements"]] == [
        ("baseline", "ok"), ("batch_size=64", "oom"), ("batch_size=2", "ok"),
    ]  # fmt: skip
    assert report["sweep"]["largest_fitting"] == 2
    assert report["measurements"][1]["fps"] is None


def test_no_worker_or_scratch_folder_is_left(models: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    done = gpubench(
        "compare-opts", f"{models}:faults", "--set", "threads=41", "--strategy", "each",
        "--duel-rounds", "0", "--output", "report.json", cwd=tmp_path, env={"TMPDIR": str(scratch)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(scratch.glob("gpubench-*")) == []
    assert processes_mentioning(str(scratch)) == []


def processes_mentioning(text: str) -> list[str]:
    """Command lines or environments of running processes that hold `text`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if text in path.read_bytes().decode(errors="replace"):
                found.append(path.parent.joinpath("cmdline").read_text().replace("\0", " "))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found
