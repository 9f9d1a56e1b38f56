from __future__ import annotations

import io
import json
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from gpubench.cli.doctor import doctor, show
from gpubench.hardware import checkup
from gpubench.hardware.doctor_facts import DoctorFinding

OK = DoctorFinding(severity="ok", subject="torch", found="2.8.0")
NOTE = DoctorFinding(severity="note", subject="swap", found="used", advice="close programs")
PROBLEM = DoctorFinding(
    severity="problem",
    subject="GPU load",
    found="others use this GPU: pid 7 ([red]evil[/red]\x1b[2J)",
    advice="End [it].",
)


def rendered(found: list[DoctorFinding], width: int) -> str:
    stream = io.StringIO()
    show(Console(file=stream, width=width, color_system=None), found)
    return stream.getvalue()


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_table_shows_everything_and_fits(width: int) -> None:
    text = rendered([OK, NOTE, PROBLEM], width)
    assert max(len(line) for line in text.splitlines()) <= width
    words = " ".join(text.split())
    for expected in ("torch 2.8.0", "-> close programs", "-> End [it].", "1 problem, 1 note."):
        assert expected in words


def test_text_from_outside_is_no_markup_and_moves_no_cursor() -> None:
    text = rendered([PROBLEM], 120)
    assert "[red]evil[/red]" in text and "\x1b" not in text


def test_a_terminal_that_knows_ascii_only() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    show(Console(file=stream, width=80), [DoctorFinding(severity="note", subject="throttling", found="at 92 °C")])
    stream.flush()
    assert b"at 92 ?C" in stream.buffer.getvalue()  # type: ignore[attr-defined]


def test_counts() -> None:
    assert rendered([OK], 80).endswith("No problem, 0 notes.\n")
    assert rendered([PROBLEM, PROBLEM, NOTE, NOTE], 80).endswith("2 problems, 2 notes.\n")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(found: list[DoctorFinding], *arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(checkup, "check_up", lambda device: device)
        monkeypatch.setattr(checkup, "findings", lambda facts: found)
        app = typer.Typer()
        app.command()(doctor)
        result = CliRunner().invoke(app, list(arguments), standalone_mode=False)
        assert result.exception is None, result.exception
        return result.return_value, result.stdout

    return run


def test_exit_code(run: Any) -> None:
    assert run([OK, NOTE])[0] == 0
    assert run([OK, PROBLEM])[0] == 1
    assert run([OK, PROBLEM], "--format", "json")[0] == 1


def test_json(run: Any) -> None:
    _, text = run([NOTE], "--format", "json")
    assert json.loads(text) == {
        "findings": [{"severity": "note", "subject": "swap", "found": "used", "advice": "close programs"}]
    }
