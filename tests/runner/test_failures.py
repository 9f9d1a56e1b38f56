"""Whatever a configuration does, it becomes a row, and the rows after it are measured as if nothing had happened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gpubench.results.store import json_schema
from tests.runner.conftest import gpubench


def rows_of(model: str, models: Path, folder: Path, *more: str, techniques: str = "precision=bf16-autocast") -> Any:
    """The rows of `compare-opts` on models.py:MODEL by id; the baseline, the technique, and a good row after it."""
    done = gpubench(
        "compare-opts", f"{models}:{model}", "--set", techniques, "--set", "threads=1", "--strategy", "each",
        "--confirm-rounds", "0", "--format", "json", "--output", "report.json", *more, cwd=folder,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    report = json.loads(done.stdout)
    jsonschema.validate(report, json_schema())
    assert report == json.loads((folder / "report.json").read_text())
    return {row["id"]: row for row in report["measurements"]}


CASES = [
    ("segfault", "crashed", "SIGSEGV"),
    ("killed", "crashed", "SIGKILL"),
    ("leaves", "crashed", "code 3"),
    ("kills_server", "crashed", "worker"),
    ("raises", "failed", "ValueError: the [red]user's[/red] own mistake"),
    ("out_of_memory", "oom", "allocate"),
    ("nan", "wrong", "not finite"),
    ("zeros", "wrong", "relative error"),
    ("double", "wrong", "norm"),
    ("stale", "wrong", "last timed step"),
]


@pytest.mark.parametrize(("model", "status", "words"), CASES, ids=[case[0] for case in CASES])
def test_a_failure_is_a_row_and_the_run_goes_on(
    model: str, status: str, words: str, models: Path, tmp_path: Path
) -> None:
    rows = rows_of(model, models, tmp_path)
    assert rows["baseline"]["status"] == "ok"
    row = rows["precision=bf16-autocast"]
    assert row["status"] == status
    assert words in row["reason"]
    assert row["reason"].endswith(".")
    assert "\n" not in row["reason"]
    after = rows["threads=1"]
    assert after["status"] == "ok"
    assert after["fps"] > 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["recommendation"]["id"] != "precision=bf16-autocast"


def test_the_log_of_a_failed_row_is_kept(models: Path, tmp_path: Path) -> None:
    row = rows_of("raises", models, tmp_path)["precision=bf16-autocast"]
    assert "about to fail" in row["log_tail"]
    assert "ValueError" in row["log_tail"]


def test_a_hang_ends_at_the_timeout(models: Path, tmp_path: Path) -> None:
    row = rows_of("hang", models, tmp_path, "--timeout", "8s")["precision=bf16-autocast"]
    assert row["status"] == "timeout"
    assert "8 s" in row["reason"]
    assert row["fps"] is None
    assert row["samples_s"] == []


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
        "compare-opts", f"{models}:segfault", "--set", "precision=bf16-autocast", "--strategy", "each",
        "--confirm-rounds", "0", "--output", "report.json", cwd=tmp_path, env={"TMPDIR": str(scratch)},
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
