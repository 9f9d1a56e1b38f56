"""Workloads that another distribution brings by the entry-point group `gpubench.workloads`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from gpubench.cli.main import run
from gpubench.errors import GpubenchError
from gpubench.workloads import catalog
from gpubench.workloads.catalog import SUMMARIES, names, origin, resolve_size, summary
from gpubench.workloads.loader import load
from tests.running import ROOT, gpubench

CODE = """
import torch
from torch import nn
from gpubench.workloads.workload import Workload

def inputs(batch_size, generator):
    return (torch.randn(batch_size, 4, generator=generator),)

def rows(width: int = 4):
    return Workload(name="rows", item="row", batch_size=2, build=lambda: nn.Linear(width, 2), inputs=inputs)

constant = rows()
number = 3
"""
METADATA = "Metadata-Version: 2.1\nName: theirs\nVersion: 1\nSummary: Workloads of theirs\n"


@pytest.fixture(autouse=True)
def fresh_catalog() -> Iterator[None]:
    catalog.plugins.cache_clear()
    yield
    catalog.plugins.cache_clear()
    sys.modules.pop("their_workloads", None)


def install(monkeypatch: pytest.MonkeyPatch, *points: tuple[str, str]) -> None:
    found = [EntryPoint(name, value, "gpubench.workloads") for name, value in points]
    monkeypatch.setattr(catalog, "entry_points", lambda group: found)


def distribute(folder: Path, entries: str, code: str = CODE) -> None:
    """A distribution `theirs` in `folder`, as pip would leave it there."""
    (folder / "their_workloads.py").write_text(code)
    info = folder / "theirs-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(METADATA)
    (info / "entry_points.txt").write_text(f"[gpubench.workloads]\n{entries}\n")


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    distribute(tmp_path, "rows = their_workloads:rows\nready = their_workloads:constant")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_their_workloads_stand_beside_the_bundled_ones(theirs: Path) -> None:
    assert names() == tuple(sorted((*SUMMARIES, "ready", "rows")))
    assert (origin("rows"), origin("vae")) == ("theirs", "gpubench")
    assert summary("rows") == "Workloads of theirs"
    assert resolve_size("rows", "auto", "cpu") is None
    assert "their_workloads" not in sys.modules  # naming them loads nothing


def test_they_load_by_name_with_their_parameters_and_the_hash_of_their_file(theirs: Path) -> None:
    loaded = load("rows", None, {"width": "8"})
    assert (loaded.reference, loaded.size, loaded.parameters) == ("rows", "default", {"width": 8})
    assert loaded.workload.build().in_features == 8
    assert loaded.file == theirs / "their_workloads.py"
    assert len(loaded.source_hash or "") == 64
    assert load("ready").workload.name == "rows"


def test_the_command_lists_them_with_their_distribution(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["workloads", "--format", "json"]) == 0
    listed = {each["name"]: each["distribution"] for each in json.loads(capsys.readouterr().out)}
    assert listed["rows"] == "theirs"
    assert listed["vae"] == "gpubench"
    assert run(["workloads", "rows"]) == 0
    said = capsys.readouterr().out
    assert "theirs" in said
    assert "--param width=" in said
    assert run(["workloads", "ready", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["parameters"] == {}


def test_a_command_measures_one_by_its_name(theirs: Path, tmp_path: Path) -> None:
    where = {"PYTHONPATH": f"{theirs}{os.pathsep}{ROOT}"}
    done = gpubench("compare-opts", "rows", "--device", "cpu", "--dry-run", cwd=tmp_path, env=where)
    assert done.returncode == 0, done.stderr
    assert "measure  baseline" in done.stdout


def test_a_name_that_is_nearly_theirs_suggests_it(theirs: Path) -> None:
    with pytest.raises(GpubenchError) as error:
        load("row")
    assert "Did you mean 'rows'?" in error.value.hint


@pytest.mark.parametrize(
    ("points", "taken"),
    [
        ([("vae", "mine:make")], "'vae' of entry point 'vae' (mine:make, from distribution unknown) is taken"),
        ([("a", "mine:make"), ("a", "yours:make")], "'a' of entry point 'a' (yours:make, from"),
    ],
    ids=["bundled", "another's"],
)
def test_a_name_that_is_taken_is_one_clear_error(
    points: list[tuple[str, str]], taken: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, *points)
    assert run(["workloads"]) == 2
    said = capsys.readouterr().err
    assert f"The workload name {taken}" in said
    assert "Rename that workload or uninstall its distribution; taken: " in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("no_such_module:make", "cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'"),
        ("their_workloads:nothing", "cannot be loaded: AttributeError"),
        ("leaves:make", "cannot be loaded: SystemExit: 3"),
        ("their_workloads:number", "mine is of type int. It must be a gpubench Workload or a function"),
    ],
)
def test_a_broken_entry_point_is_one_clear_error_and_only_where_it_is_used(
    theirs: Path, target: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (theirs / "leaves.py").write_text("raise SystemExit(3)")
    install(monkeypatch, ("mine", target))
    assert "mine" in names()
    assert load("resnet50", "tiny").workload.name == "resnet50"
    with pytest.raises(GpubenchError) as error:
        load("mine")
    assert message in str(error.value)
    assert "\n" not in error.value.message
