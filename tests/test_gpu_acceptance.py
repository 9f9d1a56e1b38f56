"""The acceptance on a GPU, tried without one: its command lines, its limits, its parts and what it says of them."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
import typer.main
from torch import nn

from gpubench.analysis.recommendation import recommend
from gpubench.cli.main import app
from gpubench.report import store
from gpubench.toggles import get
from gpubench.toggles.toggle import AS_BUILT
from gpubench.workloads.loader import load
from tests import reports
from tests.gpu.test_toggles_gpu import WIDE

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "gpu_acceptance.sh"
CALLS = ("first", "second", "third")
TEN_MINUTES = 600


def script(name: str) -> ModuleType:
    """A file of scripts/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


VERDICTS = script("gpu_verdicts")


def run(call: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "DEVICE": "cpu", "SIZE": "tiny", **variables}
    environment.pop("OUT", None)
    return subprocess.run(
        ["bash", str(SCRIPT), call, str(folder)], env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, int, list[str]]]]:
    """Name, limit and command line of each part of both calls."""
    found = {}
    for call in CALLS:
        done = run(call, tmp_path_factory.mktemp("dry"), DRY_RUN="1", DEVICE="cuda:0", SIZE="base")
        assert done.returncode == 0, done.stderr
        words = [shlex.split(line) for line in done.stdout.splitlines()]
        found[call] = [(name, int(limit), command) for name, limit, *command in words]
    return found


# ----- what it would run


@pytest.mark.parametrize("call", CALLS)
def test_every_command_line_is_understood(call: str, parts: dict[str, list[tuple[str, int, list[str]]]]) -> None:
    commands: Any = typer.main.get_command(app)
    assert parts[call]
    for name, limit, words in parts[call]:
        words = words[words.index(sys.executable) + 1 :]
        if words[:2] == ["-m", "gpubench"]:
            commands.commands[words[2]].make_context(words[2], words[3:])
        elif words[:2] == ["-m", "pytest"]:
            assert all((ROOT / word).exists() for word in words if word.startswith("tests/"))
        elif words[0].startswith("scripts/"):
            given = script(Path(words[0]).stem).parser().parse_args(words[1:])
            assert getattr(given, "limit", 0) < limit
        else:
            assert (ROOT / words[0]).is_file()
        assert any(name.startswith(judged) for judged in VERDICTS.JUDGES), name


@pytest.mark.parametrize("call", CALLS)
def test_a_call_fits_into_ten_minutes(call: str, parts: dict[str, list[tuple[str, int, list[str]]]]) -> None:
    assert sum(limit for _, limit, _ in parts[call]) <= TEN_MINUTES - 25  # for the machine's own start


def test_a_call_that_is_not_known_is_refused(tmp_path: Path) -> None:
    done = run("fourth", tmp_path)
    assert (done.returncode, list(tmp_path.iterdir())) == (2, [])
    assert "first|second|third" in done.stderr


def test_the_tests_of_the_gpu_need_nothing_but_pytest() -> None:
    code = (
        "import sys, pytest\n"
        "for name in ('jsonschema', 'yaml', 'xdist', 'pytest_timeout'): sys.modules[name] = None\n"
        "sys.exit(pytest.main(['tests/gpu', '--collect-only', '-q', '-p', 'no:cacheprovider', '-p', 'no:xdist',"
        " '-p', 'no:timeout', '-o', 'timeout=']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_toggles_gpu.py" in done.stdout


@pytest.mark.parametrize("name", WIDE)
def test_the_models_of_the_gpu_tests_are_wide_enough_for_tensor_cores(name: str) -> None:
    module = importlib.import_module(f"gpubench.workloads.{name}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(module.SIZES, "tiny", dataclasses.replace(module.SIZES["tiny"], **WIDE[name]))
        model = load(name, "tiny").workload.build()
    convolutions = [each for each in model.modules() if isinstance(each, nn.Conv2d | nn.Conv3d | nn.ConvTranspose3d)]
    wide = [each for each in convolutions if min(each.in_channels, each.out_channels) >= 64]
    most, all_of_them = (sum(each.weight.numel() for each in some) for some in (wide, convolutions))
    assert most >= 0.8 * all_of_them, (most, all_of_them)


# ----- what it does with parts that work, fail or hang

FAKE = """#!/bin/sh
case "$*" in
*gpu_verdicts.py*) exec "{python}" "$@" ;;
*"-c import xdist"*) exit 1 ;;
*doctor*) echo '{{"findings": [{{"subject": "driver", "severity": "ok", "found": "580"}}]}}' ;;
*gpu_facts.py*) trap '' INT; echo deaf >&2; sleep 60 & wait; sleep 60 ;;
*"gpu_corpus.py eager"*) echo '{line}' > "$3/corpus-eager-resnet50.jsonl"; exec sleep 60 ;;
*) echo "PYTHONPATH is $PYTHONPATH" >&2; exit 3 ;;
esac
"""
PLANNED = {"model": "resnet50", "planned": 14}
LINE = {"model": "resnet50", "mode": "inference", "configuration": {"precision": "fp32"}, "relative_error": 0.0,
        "evidence": {"precision": [True, "as set"]},
        "profiled_after_0": {"kernels": 5, "launches": 6, "graph_launches": 0}}  # fmt: skip


@pytest.fixture(scope="module")
def faked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.CompletedProcess[str], Path]]:
    """The first call with a Python in which parts are well, deaf to signals, cut off, or fail."""
    folder = tmp_path_factory.mktemp("faked")
    fake = folder / "python"
    fake.write_text(FAKE.format(python=sys.executable, line="\n".join(map(json.dumps, (PLANNED, LINE)))))
    fake.chmod(0o755)
    parts = "doctor|facts|corpus-eager|tests-trace|compare-resnet50"
    yield run("first", folder / "out", PYTHON=str(fake), PARTS=parts, LIMIT="1"), folder / "out"


@pytest.mark.slow
def test_each_part_has_its_line_whatever_became_of_the_others(
    faked: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    done, folder = faked
    assert done.returncode == 1
    said = done.stdout.splitlines()
    assert (folder / "verdicts-first.txt").read_text().splitlines() == said
    assert [" ".join(line.split()[:2]).rstrip(":") for line in said] == [
        "ok doctor", "NOTHING facts", "STOPPED corpus-eager", "NOTHING tests-trace", "NOTHING compare-resnet50",
    ]  # fmt: skip
    assert "stopped at its limit" in said[1] and "last line: deaf" in said[1]
    assert "1 of 14 configurations ran; 1 profiles lost kernels" in said[2]
    assert "exit code 3" in said[3] and f"last line: PYTHONPATH is {ROOT}" in said[3]


def test_all_that_the_parts_wrote_comes_back_in_one_archive(
    faked: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    _, folder = faked
    assert sorted(path.name for path in folder.iterdir()) == ["gpu-acceptance-first.tar.gz", "verdicts-first.txt"]
    with tarfile.open(folder / "gpu-acceptance-first.tar.gz") as archive:
        names = {Path(name).name for name in archive.getnames()}
    assert {"doctor.out", "facts.log", "corpus-eager-resnet50.jsonl", "verdicts-first.txt"} <= names


# ----- verdicts


@pytest.mark.parametrize(
    ("rows", "code", "begins", "words"),
    [
        ([reports.baseline(), reports.row("fast", 0.05)], 0, "ok", "2 ok; recommended"),
        ([reports.baseline(), reports.row("slow", None, status="wrong", reason="off by 2")], 0, "FAILED",
         "slow is wrong: off by 2"),
        ([reports.baseline()], 124, "STOPPED", "1 ok"),
        ([reports.baseline()], 1, "FAILED", "exit code 1"),
    ],
)  # fmt: skip
def test_the_verdict_on_a_report(rows: list[Any], code: int, begins: str, words: str, tmp_path: Path) -> None:
    whole = reports.report(*rows)
    whole = msgspec.structs.replace(whole, recommendation=recommend(whole, "fps").recommendation)
    store.save(whole, tmp_path / "compare-resnet50.json")
    _, line = VERDICTS.verdict(tmp_path, "compare-resnet50", code, 12.0)
    assert line.startswith(f"{begins} compare-resnet50") and words in line, line


def test_there_is_no_verdict_without_output(tmp_path: Path) -> None:
    for part in (*VERDICTS.JUDGES, "corpus-eager"):
        fine, line = VERDICTS.verdict(tmp_path, part, 0, 1.0)
        assert not fine and line.startswith(f"NOTHING {part}: exit code 0"), line
    (tmp_path / "compare-vae.json").write_text('{"measurements": 5}')
    assert VERDICTS.verdict(tmp_path, "compare-vae", 0, 1.0)[1].startswith("NOTHING compare-vae: what it left cannot")


def test_the_verdict_on_tests_names_what_failed(tmp_path: Path) -> None:
    (tmp_path / "tests-toggles.xml").write_text(
        '<testsuites><testsuite><testcase classname="tests.gpu.t" name="good"/><testcase classname="tests.gpu.t" '
        'name="bad"><failure message="x"/></testcase><testcase classname="t" name="no"><skipped/></testcase>'
        "</testsuite></testsuites>"
    )
    fine, line = VERDICTS.verdict(tmp_path, "tests-toggles", 1, 3.0)
    assert not fine and "1 passed, 1 failed, 1 skipped; " in line and "bad" in line


# ----- the corpus, on the CPU


def test_the_corpus_writes_a_line_for_each_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = script("gpu_corpus")
    planned = list(corpus.configurations("eager", "cuda:0"))
    assert [mode for mode, _ in planned].count("training") == 2
    assert {str(each["channels_last"]) for _, each in planned} == {"off", "on"}
    assert {each["precision"] for _, each in planned} == {*get("precision").values} - {AS_BUILT}
    assert len(list(corpus.configurations("compiled", "cuda:0"))) == 3
    some = [planned[0], ("inference", {"precision": "bf16-autocast", "channels_last": "on"}),
            ("inference", {"batch_size": "no number"}), planned[-2]]  # fmt: skip
    monkeypatch.setattr(corpus, "configurations", lambda kind, device: iter(some))
    corpus.run_model("eager", "resnet50", "cpu", "tiny", tmp_path)
    planned, *lines = [json.loads(line) for line in (tmp_path / "corpus-eager-resnet50.jsonl").read_text().splitlines()]
    assert planned["planned"] == 4
    assert [line["mode"] for line in lines] == ["inference", "inference", "inference", "training"]
    assert ["problem" in line for line in lines] == [False, False, True, False]
    assert lines[0]["relative_error"] == 0 < lines[1]["relative_error"] < 0.1
    assert lines[1]["evidence"]["precision"][0] is lines[1]["evidence"]["channels_last"][0] is True
    fine, line = VERDICTS.verdict(tmp_path, "corpus-eager", 0, 9.0)
    assert not fine and "3 of 4 configurations ran" in line and "problem in resnet50" in line
