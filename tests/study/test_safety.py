"""Nothing of the user's is lost or mixed up: files that exist, odd folders, what an import starts."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
import time
from pathlib import Path

from tests.running import BUSY, processes_mentioning
from tests.study.conftest import gpubench, gpubench_here

SHORT = ["--set", "threads=1", "--strategy", "each", "--final-rounds", "0", *BUSY]


def test_a_finished_report_is_kept_beside_the_new_one(models: Path, tmp_path: Path) -> None:
    command = ["compare-opts", f"{models}:good", *SHORT, "--output", "report.json"]
    assert gpubench_here(*command, cwd=tmp_path).returncode == 0
    first = (tmp_path / "report.json").read_bytes()
    assert gpubench_here(*command, cwd=tmp_path).returncode == 0
    assert (tmp_path / "report.json.bak").read_bytes() == first
    # An unfinished one is not replaced at all.
    unfinished = first.replace(b'"finished_at": "', b'"finished_at": null, "was": "', 1)
    (tmp_path / "report.json").write_bytes(unfinished)
    done = gpubench_here(*command, cwd=tmp_path)
    assert done.returncode == 2
    assert "--resume" in done.stderr
    assert (tmp_path / "report.json").read_bytes() == unfinished


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
    assert gpubench_here(*command, cwd=tmp_path).returncode == 0
    before = (tmp_path / "report.json").read_bytes()
    done = gpubench_here("recommend", "report.json", "--output", "report.json", cwd=tmp_path)
    assert done.returncode == 2
    assert (tmp_path / "report.json").read_bytes() == before
    for _ in range(2):
        assert gpubench_here("recommend", "report.json", "--output", "best.toml", cwd=tmp_path).returncode == 0
