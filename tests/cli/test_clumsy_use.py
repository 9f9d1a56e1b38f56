"""What a clumsy user or a faulty plug-in gives is answered in a sentence: no hang, no traceback, nothing lost."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

import gpubench
from gpubench import metrics, plugins
from gpubench.analysis.noisy import with_noise_flags
from gpubench.analysis.table import tidy
from gpubench.cli.main import run
from gpubench.errors import GpubenchError
from gpubench.hardware.probe import steering_variables
from gpubench.report.store import load, save
from gpubench.search.presets import load_preset
from gpubench.search.requested import read_request
from gpubench.search.space import ToggleValues
from gpubench.search.strategies import search_space
from gpubench.search.strategy import History, Strategy
from gpubench.toggles import all_toggles, get
from tests import reports
from tests.running import BUSY
from tests.search.test_space import builder


def broken(*_: object) -> None:
    """What a plug-in's author did not think of."""
    raise TypeError("no such attribute")


def test_a_plug_in_that_raises_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(all_toggles(), "theirs", dataclasses.replace(get("compile"), name="theirs", applies=broken))
    with pytest.raises(GpubenchError, match="The toggle 'theirs' failed: TypeError: no such attribute"):
        builder()


def test_a_fault_of_the_packages_own_stays_one() -> None:
    def own() -> None:
        raise TypeError("ours")

    own.__module__ = "gpubench.toggles.compilation.compile"
    with pytest.raises(TypeError, match="ours"):
        plugins.called("toggle", "compile", own)


@pytest.mark.parametrize(
    ("propose", "words"), [(broken, "The strategy 'theirs' failed: TypeError"), (lambda _: 42, "proposed 42, not")]
)
def test_a_strategy_that_raises_or_proposes_nonsense_is_named(propose: Callable[..., object], words: str) -> None:
    theirs = Strategy(name="theirs", propose=propose)  # type: ignore[arg-type]
    space = search_space(builder(), [ToggleValues("compile", ("default",))], theirs)
    with pytest.raises(GpubenchError, match=words):
        History(space).proposed()


@pytest.mark.parametrize(("read", "words"), [(broken, "'fps' failed: TypeError"), (lambda *_: "x", "'fps' read 'x'")])
def test_a_metric_that_raises_or_reads_text_is_named(
    read: Callable[..., object], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = dataclasses.replace(metrics.get("fps"), read=read)
    monkeypatch.setitem(metrics.all_metrics(), "fps", theirs)
    with pytest.raises(GpubenchError, match=words):
        tidy(reports.report(reports.baseline()))


def test_a_pipe_is_no_preset(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(GpubenchError, match="is not a regular file"):
        load_preset(str(tmp_path / "pipe.toml"))


def test_a_toggle_is_tried_or_held_and_not_both() -> None:
    with pytest.raises(GpubenchError, match="--set and --fix both name threads"):
        read_request({"threads": ["1"]}, {"threads": "2"})
    # Of the preset's toggles, those that are held are not tried.
    made = builder(precision="bf16-autocast")
    tried = read_request({}, {"precision": "bf16-autocast"}).toggle_values(made)
    assert tried and "precision" not in [entry.toggle for entry in tried]


def test_a_report_does_not_become_a_baseline_in_its_own_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.json"
    save(reports.report(reports.baseline()), path)
    before = path.read_bytes()
    assert run(["check", str(path), "--baseline", str(path), "--update", "--reason", "x"]) == 2
    assert "is the report itself" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_a_closed_standard_output_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    save(reports.report(reports.baseline()), path)
    code = "import sys; sys.stdout = None; from gpubench.cli.main import run; sys.exit(run(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "report", str(path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, "Standard output is closed" in done.stderr) == (2, True)


def test_sides_of_ab_have_no_history_and_no_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.json"
    side = reports.report(reports.baseline())
    save(msgspec.structs.replace(side, session="s", finished_at=None), path)
    assert run(["history", str(path)]) == 0
    assert "sides of ab comparisons" in capsys.readouterr().err
    assert run(["report", str(path)]) == 0
    assert "ab cannot be resumed" in " ".join(capsys.readouterr().out.split())


def test_rounds_that_show_nothing_are_flagged_without_a_figure() -> None:
    wild = [0.01, 3.0, 0.02, 5.0]
    report = reports.report(
        reports.baseline(0.1, final_s=wild), reports.row("r", 0.1, {"threads": 1}, final_s=wild[::-1])
    )
    (flag,) = [flag for flag in with_noise_flags(report)[1].flags if flag.kind == "noisy"]
    assert flag.detail == "over 4 processes no effect can be told from chance"


@pytest.mark.parametrize(
    "arguments",
    [
        {"timeout_s": "x"}, {"set": "threads"}, {"fix": ["x"]}, {"parameters": [1]}, {"allow": "contaminated"},
        {"preset": 7}, {"strategy": 7}, {"size": 5}, {"device": 3}, {"batch_size": True}, {"strict": "yes"},
    ],
    ids=lambda arguments: next(iter(arguments)),
)  # fmt: skip
def test_arguments_of_a_wrong_type_are_a_sentence(arguments: dict[str, object]) -> None:
    with pytest.raises(GpubenchError, match="Wrong type of argument"):
        gpubench.compare("resnet50", **arguments)  # type: ignore[arg-type]


def test_one_report_may_be_given_without_a_list(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    save(reports.report(reports.baseline()), path)
    assert gpubench.recommend(str(path)) == gpubench.recommend([path])
    assert len(gpubench.recommend(load(path))) == 1


def test_an_empty_name_is_no_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare-opts", "--preset", "", "--dry-run"]) == 2
    assert "--preset is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [["doctor"], ["compare-opts", "model.py:make"], ["batch-sweep", "--sizes", "1"], ["ab", "--b", "x.py:y"]]
)
def test_a_deleted_current_folder_is_told_at_once(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert run(command) == 2
    assert "The current folder has been deleted or cannot be entered. Change to another" in capsys.readouterr().err


def test_a_workload_is_measured_in_a_folder_whose_name_is_no_utf8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xff d"))
    folder.mkdir()
    (folder / "helper.py").write_text("width = 4\n")
    (folder / "model.py").write_text(
        "import helper, torch\n"
        "from gpubench import Workload\n"
        "make = Workload(name='m', item='row', batch_size=2, build=lambda: torch.nn.Linear(helper.width, 4),\n"
        "                inputs=lambda b, g: (torch.randn(b, 4, generator=g),))\n"
    )
    monkeypatch.chdir(folder)
    asked = ["--set", "precision=fp32", "--final-rounds", "0", *BUSY]
    assert run(["compare-opts", "model.py:make", *asked, "--output", "report.json"]) == 0
    assert load(folder / "report.json").measurements[0].status == "ok"
    assert run(["compare-opts", f"{folder}/model.py:make", *asked]) == 2
    error = capsys.readouterr().err
    assert "has bytes in its path that are no UTF-8" in error and "name it from there" in error


def test_an_environment_variable_that_is_no_utf8_fits_into_a_report() -> None:
    assert steering_variables({"OMP_PLACES": os.fsdecode(b"\xff")}) == {"OMP_PLACES": "\\udcff"}
