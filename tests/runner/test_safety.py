"""Nothing of the user's is lost or mixed up: files that exist, files that change, disks that fill up, odd folders."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sysconfig
import time
from pathlib import Path

import pytest

from gpubench.cli.main import run
from gpubench.errors import GpubenchError
from gpubench.results import store
from gpubench.runner import campaign
from gpubench.toggles import all_toggles, get
from tests.runner.conftest import gpubench
from tests.runner.test_failures import processes_mentioning

SHORT = ["--set", "threads=1", "--strategy", "each", "--duel-rounds", "0"]


def test_a_file_that_changes_during_the_run_is_noticed(models: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    text = models.read_text()
    # The step of the first row rewrites the file, as an editor would.
    own.write_text(text + f"\n\ndef edited():\n    open({str(own)!r}, 'a').write('# edited\\n')\n    return good()\n")
    done = gpubench("compare-opts", "own.py:edited", *SHORT, "--output", "report.json", cwd=tmp_path)
    assert "was changed during the run" in done.stdout + done.stderr
    assert done.returncode == 1


def test_a_finished_report_is_kept_beside_the_new_one(models: Path, tmp_path: Path) -> None:
    command = ["compare-opts", f"{models}:good", *SHORT, "--output", "report.json"]
    assert gpubench(*command, cwd=tmp_path).returncode == 0
    first = (tmp_path / "report.json").read_bytes()
    assert gpubench(*command, cwd=tmp_path).returncode == 0
    assert (tmp_path / "report.json.bak").read_bytes() == first
    # An unfinished one is not replaced at all.
    unfinished = first.replace(b'"finished_at": "', b'"finished_at": null, "was": "', 1)
    (tmp_path / "report.json").write_bytes(unfinished)
    done = gpubench(*command, cwd=tmp_path)
    assert done.returncode == 2
    assert "--resume" in done.stderr
    assert (tmp_path / "report.json").read_bytes() == unfinished


def test_a_disk_that_fills_up_ends_no_run(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    real, calls = store.save, 0

    def full_after_two(report, path):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if calls > 2:
            raise GpubenchError("Cannot write report.json: No space left on device.")
        real(report, path)

    monkeypatch.setattr(campaign.store, "save", full_after_two)
    code = run(["compare-opts", f"{models}:good", *SHORT, "--output", "report.json"])
    said = capsys.readouterr()
    assert code == 2
    assert "threads=1" in said.out  # measured after the disk was full, and shown
    assert "the run goes on" in said.err
    assert "could not be saved" in said.err
    assert len(store.load(tmp_path / "report.json").measurements) == 1  # what was saved before is whole


def test_a_folder_with_files_named_like_modules_hides_nothing(models: Path, tmp_path: Path) -> None:
    shutil.copy(models, tmp_path / "models.py")
    for name in ("random", "json", "torch"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('the wrong module')\n")
    (tmp_path / "moves.py").write_text("import os\nos.chdir('/')\nfrom models import good\n")
    script = Path(sysconfig.get_path("scripts"), "gpubench")  # of this interpreter, whose folder need not be on PATH
    done = subprocess.run(
        [script, "compare-opts", "moves.py:good", *SHORT, "--output", "report.json"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_what_an_import_starts_ends_with_the_run(models: Path, tmp_path: Path) -> None:
    shutil.copy(models, tmp_path / "models.py")
    (tmp_path / "starts.py").write_text(
        "import subprocess\nsubprocess.Popen(['sleep', '300'])\nfrom models import good\n"
    )
    mark = f"mark-{tmp_path.name}-{time.time_ns()}"
    done = gpubench("compare-opts", "starts.py:good", "--dry-run", cwd=tmp_path, env={"GPUBENCH_TEST_MARK": mark})
    assert done.returncode == 0, done.stderr
    time.sleep(0.5)
    assert processes_mentioning(mark) == []


def test_recommend_overwrites_nothing_but_its_own_profiles(models: Path, tmp_path: Path) -> None:
    command = ["compare-opts", f"{models}:good", *SHORT, "--output", "report.json", "--quiet"]
    assert gpubench(*command, cwd=tmp_path).returncode == 0
    before = (tmp_path / "report.json").read_bytes()
    done = gpubench("recommend", "report.json", "--output", "report.json", cwd=tmp_path)
    assert done.returncode == 2
    assert (tmp_path / "report.json").read_bytes() == before
    for _ in range(2):
        assert gpubench("recommend", "report.json", "--output", "best.toml", cwd=tmp_path).returncode == 0


def test_an_environment_that_cannot_start_is_a_row(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    broken = dataclasses.replace(
        get("allocator"), environment=lambda value: {"PYTHONHOME": "/nowhere"} if value == "tuned" else {}
    )
    monkeypatch.setitem(all_toggles(), "allocator", broken)
    command = ["compare-opts", f"{models}:good", "--device", "cpu", "--set", "allocator=tuned", "--set", "threads=1"]
    assert run([*command, "--strategy", "each", "--duel-rounds", "0", "--output", "report.json", "--quiet"]) == 0
    statuses = {row.id: row.status for row in store.load(tmp_path / "report.json").measurements}
    assert statuses == {"baseline": "ok", "allocator=tuned": "crashed", "threads=1": "ok"}
