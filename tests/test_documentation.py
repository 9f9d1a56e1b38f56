"""What the documents say is so: every command and option is described, and the README shows the real results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from gpubench.cli.main import app
from gpubench.report import store

ROOT = Path(__file__).parents[1]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help_and_the_readme_names_the_command(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    assert f"gpubench {name}" in (ROOT / "README.md").read_text()
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{name}: {parameter.name} has no help"


def test_the_reference_says_what_the_commands_help_says() -> None:
    script = [sys.executable, str(ROOT / "scripts" / "write_cli_reference.py"), "--check"]
    assert subprocess.run(script, check=False).returncode == 0, "run scripts/write_cli_reference.py"


def test_the_readme_shows_the_committed_results() -> None:
    script = [sys.executable, str(ROOT / "scripts" / "update_readme.py"), "--check"]
    assert subprocess.run(script, check=False).returncode == 0, "run scripts/update_readme.py"


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*/*.json")), ids=lambda path: path.name)
def test_committed_reports_are_whole(path: Path) -> None:
    report = store.load(path)
    assert report.finished_at is not None
    assert report.recommendation is not None
    assert all(row.samples_s for row in report.measurements if row.status == "ok")


@pytest.mark.parametrize("script", ["gpu_acceptance.sh"])
def test_shell_scripts_parse(script: str) -> None:
    assert subprocess.run(["bash", "-n", str(ROOT / "scripts" / script)], check=False).returncode == 0
