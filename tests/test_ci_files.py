"""The GitHub action and the GitLab example: their own commands are run, as the runners would run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from gpubench.report.store import save
from tests.reports import baseline, report

ROOT = Path(__file__).parents[1]
STEADY = [1.0, 1.001, 0.999, 1.0, 1.0, 1.0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, step_s in (("old", 0.1), ("same", 0.1), ("slow", 0.2)):
        save(report(baseline(step_s, explore_s=[step_s * value for value in STEADY])), tmp_path / f"{name}.json")
    return tmp_path


def with_python(folder: Path, **variables: str) -> dict[str, str]:
    """An environment whose `python` is this one, with gpubench."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    launcher = programs / "python"
    launcher.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    launcher.chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), **variables}


def action(
    folder: Path, report_: str, options: str = "", baseline_: str = "old.json", **more: str
) -> subprocess.CompletedProcess[str]:
    """The action's own step, run as GitHub does."""
    document = yaml.safe_load((ROOT / "action.yml").read_text())
    assert document["runs"]["using"] == "composite"
    step = next(one for one in document["runs"]["steps"] if one.get("id") == "check")
    given = {"report": report_, "baseline": baseline_, "options": options, **more}
    variables = {
        name: given.get(key, str(document["inputs"][key].get("default", "")))
        for name, text in step["env"].items()
        for key in [text.removeprefix("${{ inputs.").removesuffix(" }}")]
    }
    for name in ("output", "summary"):
        (folder / name).write_text("")
    files = {"GITHUB_OUTPUT": str(folder / "output"), "GITHUB_STEP_SUMMARY": str(folder / "summary")}
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step["run"]],
        cwd=folder, env=with_python(folder, **variables, **files), capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(("name", "code"), [("same", 0), ("slow", 1)])
def test_the_action_fails_on_a_regression_and_tells(folder: Path, name: str, code: int) -> None:
    done = action(folder, f"{name}.json")
    assert done.returncode == code, done.stderr
    assert (folder / "output").read_text() == f"exit-code={code}\n"
    assert ("::error title=vae inference::" in done.stdout) == bool(code)
    summary = (folder / "summary").read_text()
    assert summary == (folder / "gpubench-check.md").read_text()
    assert ("regressed" in summary) == bool(code)
    assert json.loads((folder / "gpubench-check.json").read_text())[0]["exit_code"] == code


def test_the_action_takes_several_reports_and_options(folder: Path) -> None:
    assert action(folder, "same.json\nslow.json\n", "--max-slowdown=150%\n--max-p95-growth=150%\n").returncode == 0


def test_what_lies_in_the_workspace_is_not_taken_for_gpubench(folder: Path) -> None:
    for name in ("gpubench", "typer", "msgspec"):
        (folder / f"{name}.py").write_text("raise SystemExit(99)")
    assert action(folder, "same.json").returncode == 0


def test_the_action_says_that_there_is_no_baseline_yet(folder: Path) -> None:
    (folder / "baselines").mkdir()
    (folder / "baselines" / ".gitkeep").touch()
    done = action(folder, "same.json", baseline_="baselines")
    assert done.returncode == 3
    assert (folder / "output").read_text() == "exit-code=3\n"
    assert "has no baseline for vae inference tiny" in (folder / "summary").read_text()


def test_the_action_tells_of_wrong_usage(folder: Path) -> None:
    done = action(folder, "missing.json")
    assert done.returncode == 2
    assert "There is no file missing.json" in done.stderr


def test_the_action_writes_over_nothing_that_is_read(folder: Path) -> None:
    before = {name: (folder / f"{name}.json").read_bytes() for name in ("old", "same")}
    for files in (
        {"verdict-file": "old.json"}, {"verdict-file": "same.json"}, {"comment-file": "x.txt"},
        {"verdict-file": "/proc/nowhere.json"}, {"comment-file": "/dev/null"},
    ):  # fmt: skip
        done = action(folder, "same.json", **files)
        assert done.returncode == 2, files
        assert (folder / "output").read_text() == "exit-code=2\n"
    assert before == {name: (folder / f"{name}.json").read_bytes() for name in before}


def test_the_action_does_not_pass_where_nothing_was_checked(folder: Path) -> None:
    assert action(folder, "slow.json", "--help").returncode == 2
    assert action(folder, "slow.json", "--update\n--reason=x").returncode == 2
    assert action(folder, "slow.json", baseline_="").returncode == 2


def test_lines_of_the_actions_inputs_may_be_indented(folder: Path) -> None:
    options = "   --max-slowdown=150%\r\n\t--max-p95-growth=150%  \n"
    assert action(folder, "  slow.json \r\n", options).returncode == 0


def test_inputs_of_the_action_cannot_run_anything(folder: Path) -> None:
    evil = '"; touch broken; echo "$(touch broken)`touch broken`'
    for arguments in ((evil,), ("same.json", evil), ("same.json", "", evil)):
        assert action(folder, *arguments).returncode != 0
    assert not (folder / "broken").exists()
    for one in yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"]:
        assert "${{" not in one["run"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("same", 0), ("slow", 1)])
def test_the_gitlab_example_fails_on_a_regression_and_leaves_junit(folder: Path, name: str, code: int) -> None:
    job: dict[str, Any] = yaml.safe_load((ROOT / "examples" / "gitlab-ci.yml").read_text())["gpubench"]
    measuring, *rest = job["script"]
    assert measuring.startswith("python -m gpubench compare-opts")
    (folder / f"{name}.json").rename(folder / "report.json")
    env = with_python(folder, WORKLOAD="resnet50", BASELINE="old.json")
    # The measuring itself: everything but the time that it takes.
    dry = subprocess.run(
        ["bash", "-c", f"{measuring} --dry-run"], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert dry.returncode == 0, dry.stderr
    assert dry.stdout.startswith("measure  baseline")
    done = subprocess.run(["bash", "-e", "-c", "\n".join(rest)], cwd=folder, env=env, capture_output=True, check=False)
    assert done.returncode == code
    assert (ElementTree.parse(folder / job["artifacts"]["reports"]["junit"]).find(".//failure") is not None) == bool(
        code
    )
