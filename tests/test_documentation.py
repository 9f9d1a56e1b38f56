"""What the documents say is so: every command and option is described, and the README shows the real results."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from gpubench.analysis.guides import all_guides
from gpubench.cli.main import app
from gpubench.cli.measuring import RUNS
from gpubench.flags import GATES, KINDS, STRICT
from gpubench.report import store
from gpubench.toggles import all_toggles
from scripts.update_readme import committed

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


def test_the_table_of_flags_is_the_registry() -> None:
    script = [sys.executable, str(ROOT / "scripts" / "update_flag_table.py"), "--check"]
    assert subprocess.run(script, check=False).returncode == 0, "run scripts/update_flag_table.py"
    text = (ROOT / "docs" / "measurement.md").read_text()
    assert all(text.count(f"\n| `{kind}` | ") == 1 for kind in KINDS)


def test_the_pages_of_toggles_workloads_and_claims_are_what_the_code_says() -> None:
    script = [sys.executable, str(ROOT / "scripts" / "write_docs.py"), "--check"]
    assert subprocess.run(script, check=False).returncode == 0, "run scripts/write_docs.py"


def test_every_guide_that_a_toggle_names_is_there() -> None:
    assert {guide for toggle in all_toggles().values() for guide in toggle.claims} <= all_guides().keys()


@pytest.mark.parametrize("name", ["measurement.md", "ci.md", "claims.md", "toggles.md", "workloads.md"])
def test_files_that_a_document_names_exist(name: str) -> None:
    text = (ROOT / "docs" / name).read_text()
    for path in re.findall(r"`([a-z0-9_]+/(?:[a-z0-9_/]+\.py)?)`", text):
        assert (ROOT / "gpubench" / path).exists() or (ROOT / path).exists(), path
    for path in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (ROOT / "docs" / path).exists(), path


def test_the_help_names_the_flags_that_the_registry_names() -> None:
    options = {parameter.name: parameter.help for parameter in COMMANDS["compare-opts"].params}
    assert all(name in options["strict"] for name in STRICT)
    assert all(name in options["allow"] for name in GATES)


def test_a_report_that_is_not_committed_is_not_in_the_readme(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "a-device"
    folder.mkdir(parents=True)
    for name in ("kept.json", "own.json"):
        (folder / name).write_text("{}")
    assert committed(tmp_path) == [folder / "kept.json", folder / "own.json"]  # an archive: all are committed
    for command in (["init", "-q"], ["add", "results/a-device/kept.json"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    assert committed(tmp_path) == [folder / "kept.json"]


def test_git_ignores_where_reports_go() -> None:
    assert f"{RUNS}/" in (ROOT / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize("path", committed(), ids=lambda path: path.name)
def test_committed_reports_are_whole(path: Path) -> None:
    report = store.load(path)
    assert report.finished_at is not None
    assert report.recommendation is not None
    assert all(row.samples_s for row in report.measurements if row.status == "ok")


@pytest.mark.parametrize("script", ["gpu_acceptance.sh"])
def test_shell_scripts_parse(script: str) -> None:
    assert subprocess.run(["bash", "-n", str(ROOT / "scripts" / script)], check=False).returncode == 0
