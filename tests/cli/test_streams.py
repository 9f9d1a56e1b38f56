"""Whatever becomes of the terminal, a run ends with its report, and standard output holds nothing but the result."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gpubench import api
from gpubench.cli.main import run
from gpubench.cli.progress import Quiet
from gpubench.report import store
from gpubench.report.model import Report
from tests import reports
from tests.running import BUSY, MODELS, environment

TELL = """
import sys, traceback, warnings
from gpubench.streams import secure
secure()
from gpubench.cli.progress import listener
from gpubench.cli.reports import emit, tell
with listener(quiet=False) as progress:
    for number in range(1000):  # more than any buffer holds
        progress.note(f"note {number} " + 100 * "x")
        tell("told")
    print("printed", file=sys.stderr, flush=True)
    warnings.warn("warned")
emit("result")
"""


def shell(command: str, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`command` in a shell, with `arguments` as "$@"."""
    return subprocess.run(
        ["bash", "-c", command, "bash", *arguments],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full", "2> >(exec true)", "2>&- <&-"])
def test_what_standard_error_does_not_take_stops_nothing(stderr: str, tmp_path: Path) -> None:
    done = shell(f'"$@" {stderr}', tmp_path, sys.executable, "-c", TELL)
    assert (done.returncode, done.stdout) == (0, "result")


def test_a_complaint_never_lands_in_standard_output(tmp_path: Path) -> None:
    done = shell('"$@" 2>&-', tmp_path, sys.executable, "-m", "gpubench", "report", "none.json")
    assert (done.returncode, done.stdout) == (2, "")


def test_a_reader_that_has_gone_does_not_look_like_a_regression(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    store.save(reports.report(reports.baseline(0.1)), path)
    command = [sys.executable, "-m", "gpubench", "check", str(path), "--baseline", str(path)]
    done = shell('( "$@" ; echo $? >code ) 1> >(exec true)', tmp_path, *command)
    assert (done.stdout, (tmp_path / "code").read_text().strip()) == ("", "141")


def test_a_run_without_any_stream_writes_its_report(tmp_path: Path) -> None:
    """Its files and sockets would get the numbers of the closed streams."""
    command = [sys.executable, "-m", "gpubench", "compare-opts", f"{MODELS}:good", "--set", "precision=fp32"]
    done = shell('"$@" <&- >&- 2>&-', tmp_path, *command, *BUSY, "--final-rounds", "0", "--output", "report.json")
    assert done.returncode == 2  # the table could not be printed
    report = store.load(tmp_path / "report.json")
    assert report.finished_at and [row.status for row in report.measurements] == ["ok"]


def test_where_the_report_is_is_told_even_if_it_cannot_be_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(request: object, output: Path, listener: Quiet, **_: object) -> Report:
        listener.report_at(output)
        return reports.report(reports.baseline(0.1))

    monkeypatch.setattr(api, "measure", measure)
    monkeypatch.setattr(sys, "stdout", None)
    assert run(["compare-opts", "resnet50", "--output", str(tmp_path / "report.json")]) == 2
    assert f"Report: {tmp_path / 'report.json'}" in capsys.readouterr().err.replace("\n", "")
