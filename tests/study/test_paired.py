"""`gpubench ab`: two files, two revisions, two interpreters; paired where they can share a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from gpubench.errors import GpubenchError
from gpubench.report.model import Report
from gpubench.report.store import load
from gpubench.study.launch_ab import empty_folder, refuse_unlike, steady
from gpubench.study.request import StudyRequest
from gpubench.study.sides import Side, refuse_foreign_code, resolve, why_apart
from gpubench.worker.messages import Module
from tests.reports import CPU, GPU, baseline, report
from tests.running import gpubench_here

MODEL = """
import time

import torch
from torch import nn

from gpubench import Workload
{imports}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x):
        end = time.perf_counter() + {seconds}
        out = self.layer(x)
        while time.perf_counter() < end:
            pass
        return out


def make():
    return Workload(
        name="paced", item="row", batch_size=4, build=Model,
        inputs=lambda batch, generator: (torch.randn(batch, 16, generator=generator),),
    )
"""
QUICK = ("--rounds", "5", "--time-limit", "1s", "--device", "cpu", "--format", "json", "--output", "out")
LONGER = ("--time-limit", "20s")  # beside others that keep the cores busy, 5 rounds may not decide


def write(path: Path, seconds: float, imports: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(MODEL.format(seconds=seconds, imports=imports))
    return path


def git(folder: Path, *arguments: str) -> str:
    identity = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    command = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **identity}).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two commits of `models/mine.py` and what it imports; the second is half as fast."""
    folder = tmp_path / "repository"
    for seconds, message in ((0.01, "one"), (0.02, "two")):
        write(folder / "models" / "mine.py", seconds, "import helper")
        (folder / "models" / "helper.py").write_text(f"VALUE = {seconds}\n")
        if message == "one":
            git(tmp_path, "init", "-q", str(folder))
            (folder / ".gitignore").write_text("__pycache__/\n")
        git(folder, "add", ".")
        git(folder, "commit", "-q", "-m", message)
    return folder


def sides_of(folder: Path) -> tuple[Report, Report]:
    return load(folder / "a.json"), load(folder / "b.json")


# ----- whole runs


@pytest.mark.slow
def test_two_files_share_a_process_and_a_slowdown_is_found(tmp_path: Path) -> None:
    write(tmp_path / "old.py", 0.010)
    write(tmp_path / "new.py", 0.020)
    done = gpubench_here("ab", "--a", "old.py:make", "--b", "new.py:make", *QUICK, *LONGER, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    (found,) = json.loads(done.stdout)
    assert (found["verdict"], found["paired"]) == ("regressed", True)
    (fps,) = [one for one in found["rows"][0]["findings"] if one["metric"] == "fps"]
    assert fps["change_low"] - 0.02 <= 10 / 20 - 1 <= fps["change_high"] + 0.02
    assert fps["rounds"] >= 5
    a, b = sides_of(tmp_path / "out")
    assert a.session == b.session and a.session
    assert "Both sides use allocator=tuned" in done.stderr
    for mine, other in ((a, b), (b, a)):
        (row,) = mine.measurements
        assert row.configuration["allocator"] == "tuned"
        final = [part for part in row.rounds if part.phase == "final"]
        assert [part.index for part in final] == list(range(1, fps["rounds"] + 1))
        assert all(part.shared_with == [f"{'b' if other is b else 'a'} allocator=tuned"] for part in final)
        assert row.memory is not None
    # From the files, the same verdict again.
    again = gpubench_here("check", "out/b.json", "--baseline", "out/a.json", "--max-slowdown", "2.5%", cwd=tmp_path)
    assert again.returncode == 1


@pytest.mark.slow
def test_a_revision_against_the_file_as_it_is(repository: Path) -> None:
    before = git(repository, "status", "--porcelain"), git(repository, "worktree", "list")
    done = gpubench_here("ab", "models/mine.py:make", "--a", "HEAD~1", *QUICK, *LONGER, cwd=repository)
    assert done.returncode == 1, done.stderr
    (found,) = json.loads(done.stdout)
    assert found["baseline"].startswith("a: HEAD~1 (")
    assert found["current"] == "b: ."
    assert git(repository, "status", "--porcelain") == before[0] + "?? out/\n"
    assert git(repository, "worktree", "list") == before[1]
    assert (repository / "models" / "mine.py").read_text() == MODEL.format(seconds=0.02, imports="import helper")
    # Each revision has its own helper, which one process could not hold both of.
    assert "The sides import different code as helper" in done.stderr
    assert all(part.shared_with == [] for side in sides_of(repository / "out") for part in side.measurements[0].rounds)


@pytest.mark.slow
def test_another_interpreter_has_processes_of_its_own(tmp_path: Path) -> None:
    launcher = tmp_path / "python-b"
    launcher.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    launcher.chmod(0o755)
    write(tmp_path / "mine.py", 0.01)
    done = gpubench_here(
        "ab", "mine.py:make", "--b", "./python-b", *QUICK, "--fix", "allocator=system", "--max-slowdown", "30%",
        "--inconclusive-ok", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "allocator" not in done.stderr
    assert "The sides use different interpreters" in done.stderr
    for side in sides_of(tmp_path / "out"):
        assert all(part.shared_with == [] for part in side.measurements[0].rounds)


@pytest.mark.slow
def test_a_side_that_crashes_is_a_regression(tmp_path: Path) -> None:
    write(tmp_path / "old.py", 0.01)
    write(tmp_path / "new.py", 0.01).write_text(
        MODEL.format(seconds=0.01, imports="").replace("out = self.layer(x)", "raise RuntimeError('planted')")
    )
    done = gpubench_here("ab", "--a", "old.py:make", "--b", "new.py:make", *QUICK, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    (found,) = json.loads(done.stdout)
    (status,) = [one for one in found["rows"][0]["findings"] if one["metric"] == "status"]
    assert status["reason"].startswith("It was ok and is failed: RuntimeError: planted")


# ----- sides


def test_each_kind_of_side_is_recognized(repository: Path, tmp_path: Path) -> None:
    workload = f"{repository}/models/mine.py:make"
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    assert resolve("a", ".", workload, scratch).kind == "as it is"
    assert resolve("a", sys.executable, workload, scratch).python == sys.executable
    assert resolve("a", f"python:{sys.executable}", workload, scratch).kind == "interpreter"
    assert resolve("a", "other.py:make", workload, scratch).reference == "other.py:make"
    assert resolve("a", "package.module:make", workload, scratch).kind == "workload"
    side = resolve("b", "git:HEAD~1", workload, scratch)
    assert side.kind == "revision"
    assert side.reference == f"{scratch}/revision-b/models/mine.py:make"
    assert "0.01" in (scratch / "revision-b/models/mine.py").read_text()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no-such-thing", "not an interpreter, FILE.py:NAME or git revision"),
        ("git:no-such-thing", "git revision here"),
        ("python:/nowhere/python", "not an executable program"),
        ("--upload-pack=touch broken", "git revision here"),
        ("", "git revision here"),
    ],
)
def test_what_is_none_of_them_is_one_sentence(repository: Path, tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(GpubenchError, match=words):
        resolve("a", text, f"{repository}/models/mine.py:make", tmp_path)
    assert not (repository / "broken").exists()


def test_a_revision_needs_a_file_that_it_has(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(GpubenchError, match="need WORKLOAD as FILE"):
        resolve("a", "HEAD", "resnet50", tmp_path)
    write(repository / "new.py", 0.01)
    with pytest.raises(GpubenchError, match=r"has no file new\.py"):
        resolve("a", "HEAD", f"{repository}/new.py:make", tmp_path)
    with pytest.raises(GpubenchError, match="in no git repository"):
        resolve("a", "HEAD", f"{write(tmp_path / 'alone.py', 0.01)}:make", tmp_path)


def test_links_that_lead_out_of_a_revision_are_left_out(repository: Path, tmp_path: Path) -> None:
    (repository / "out").symlink_to("/etc")
    (repository / "up").symlink_to("../../..")
    (repository / "models" / "near.py").symlink_to("mine.py")
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "links")
    side = resolve("a", "HEAD", f"{repository}/models/mine.py:make", tmp_path / "scratch")
    assert side.root is not None
    assert not (side.root / "out").exists() and not (side.root / "up").exists()
    assert (side.root / "models" / "near.py").read_text() == (side.root / "models" / "mine.py").read_text()


def test_what_git_says_is_told(tmp_path: Path) -> None:
    write(tmp_path / "mine.py", 0.01)
    (tmp_path / ".git").write_text("gitdir: /nowhere/at/all")
    with pytest.raises(GpubenchError, match="not a git repository"):
        resolve("a", "HEAD", f"{tmp_path}/mine.py:make", tmp_path)


@pytest.mark.parametrize(
    ("fix", "variables", "held"),
    [
        ({}, {}, True),
        ({"allocator": "system"}, {}, False),
        ({}, {"GLIBC_TUNABLES": "glibc.malloc.top_pad=1000000"}, False),
        ({}, {"GLIBC_TUNABLES": "glibc.cpu.x86_ibt=off"}, True),
    ],
)
def test_the_allocator_is_held_steady_unless_it_is_chosen(
    fix: dict[str, str | int], variables: dict[str, str], held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GLIBC_TUNABLES", "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    request = StudyRequest(fix=fix)
    whole = report(baseline(), device=CPU)
    described = SimpleNamespace(device=whole.device, environment=whole.environment, workload=whole.workload)
    found = steady(request, [described, described])  # type: ignore[list-item]
    assert found == ({"allocator": "tuned"} if held else {})
    on_gpu = SimpleNamespace(device=GPU, environment=whole.environment, workload=whole.workload)
    assert steady(request, [on_gpu, on_gpu]) == {}  # type: ignore[list-item]


def test_modules_of_one_name_and_unlike_content_cannot_share(tmp_path: Path) -> None:
    one, other = (Side(name, ".", "as it is", "x.py:make") for name in ("a", "b"))  # type: ignore[arg-type]
    same = {"helper": Module(file="/1/helper.py", hash="1")}
    assert why_apart(one, other, (same, {"helper": Module(file="/2/helper.py", hash="1")})) == ""
    assert "helper" in why_apart(one, other, (same, {"helper": Module(file="/2/helper.py", hash="2")}))
    assert "helper" in why_apart(one, other, (same, {}))


def test_a_revision_that_imports_the_working_tree_is_refused(repository: Path, tmp_path: Path) -> None:
    side = resolve("a", "HEAD~1", f"{repository}/models/mine.py:make", tmp_path)
    refuse_foreign_code(side, {"own": Module(file=str(tmp_path / "revision-a" / "own.py"), hash="")})
    with pytest.raises(GpubenchError, match="the working tree"):
        refuse_foreign_code(side, {"package": Module(file=str(repository / "package.py"), hash="")})


def test_a_folder_that_holds_something_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(GpubenchError, match="exists and is not an empty folder"):
        empty_folder(tmp_path)


def test_sides_on_other_devices_are_refused_before_anything_is_measured() -> None:
    whole = report(baseline(), device=CPU)

    def described(**changes: object) -> SimpleNamespace:
        return SimpleNamespace(device=msgspec.structs.replace(CPU, **changes), workload=whole.workload)

    refuse_unlike({"a": described(), "b": described()})  # type: ignore[dict-item]
    refuse_unlike({"a": described(uuid=None), "b": described(uuid="GPU-1")})  # type: ignore[dict-item]
    for changes in ({"cores": 1}, {"name": "Other"}):
        with pytest.raises(GpubenchError, match="The sides have different") as caught:
            refuse_unlike({"a": described(), "b": described(**changes)})  # type: ignore[dict-item]
        assert caught.value.exit_code == 3


def test_wrong_usage_is_one_sentence(tmp_path: Path) -> None:
    write(tmp_path / "mine.py", 0.01)
    for arguments in (
        ("mine.py:make",),
        ("mine.py:make", "--a", "nothing"),
        ("mine.py:make", "--a", "mine.py:missing"),
        ("mine.py:make", "--a", "mine.py:make", "--max-slowdown", "x"),
        ("mine.py:make", "--a", "mine.py:make", "--rounds", "2"),
    ):
        done = gpubench_here("ab", *arguments, "--quiet", cwd=tmp_path)
        assert done.returncode == 2, (arguments, done.stderr)
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
