"""The commands that read reports: recommend, report, schema."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner, Result

from gpubench.analysis.recommendation import recommend as advise
from gpubench.cli.recommend import recommend
from gpubench.cli.report import report as show_report
from gpubench.cli.schema import schema
from gpubench.errors import GpubenchError
from gpubench.report.model import Report
from gpubench.report.store import json_schema, save
from tests.reports import CPU, HOSTILE, baseline, hostile_report, ladder_report, report, row

app = typer.Typer()
for command in (recommend, schema):
    app.command()(command)
app.command("report")(show_report)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refusal(*arguments: object) -> GpubenchError:
    error = call(*arguments).exception
    assert isinstance(error, GpubenchError), error
    assert "\n" not in str(error)
    return error


def saved(path: Path, example: Report | None = None) -> Path:
    example = example or ladder_report()
    save(msgspec.structs.replace(example, recommendation=advise(example, "fps").recommendation), path)
    return path


def test_recommend_shows_the_configuration_reasons_and_code(tmp_path: Path) -> None:
    result = call("recommend", saved(tmp_path / "r.json"))
    assert result.exit_code == 0
    flat = " ".join(result.stdout.split())
    assert "Recommended for fps: precision=bf16-autocast, channels_last=on, compile=default (#7)" in flat
    assert "versus baseline" in flat
    assert 'model.encoder.compile(mode="default") model.decoder.compile(mode="default")' in flat
    assert "channels_last" in flat


def test_recommend_as_json_is_one_answer_for_each_subject(tmp_path: Path) -> None:
    saved(tmp_path / "gpu.json")
    saved(tmp_path / "cpu.json", report(baseline(), row("fast", 0.02, {"channels_last": "on"}), device=CPU))
    answers = json.loads(call("recommend", tmp_path / "gpu.json", tmp_path / "cpu.json", "--format", "json").stdout)
    assert {answer["device"]["kind"]: answer["recommendation"]["id"] for answer in answers} == {
        "cpu": "fast",
        "cuda": "all",
    }
    assert answers[0]["excluded"] == {}
    assert answers[1]["excluded"]["wrong"].startswith("wrong")
    assert answers[1]["source"].endswith("gpu.json")


def test_recommend_as_markdown(tmp_path: Path) -> None:
    shown = call("recommend", saved(tmp_path / "r.json"), "--format", "markdown").stdout
    assert "**Recommended for fps: precision=bf16-autocast" in shown
    assert "```" in shown


def test_objective_and_memory_limit_change_the_answer(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "r.json",
        report(baseline(memory_mib=500), row("fast", 0.05, {"compile": "default"}, memory_mib=3000)),
    )

    def id_of(*options: str) -> Any:
        return json.loads(call("recommend", path, "--format", "json", *options).stdout)[0]["recommendation"]["id"]

    assert id_of() == "fast"
    assert id_of("--max-memory", "1GiB") == "baseline"
    assert id_of("--objective", "memory") == "baseline"


def test_a_folder_stands_for_its_reports_and_other_files_are_passed_over_with_a_note(tmp_path: Path) -> None:
    saved(tmp_path / "deep" / "r.json")
    (tmp_path / "other.json").write_text("{}")
    result = call("recommend", tmp_path, tmp_path / "deep" / "r.json", "--format", "json")
    assert len(json.loads(result.stdout)) == 1
    assert "Skipped: " in result.stderr
    assert "other.json" in result.stderr
    assert "not used" not in result.stderr  # the same file twice is one report


def test_older_reports_about_the_same_thing_are_not_used_and_that_is_said(tmp_path: Path) -> None:
    saved(tmp_path / "old.json")
    saved(tmp_path / "new.json", msgspec.structs.replace(ladder_report(), created_at="2027-01-01T00:00:00+00:00"))
    result = call("recommend", tmp_path)
    assert "new.json; 1 other report about the same thing not used" in result.stderr


def test_a_profile_is_written(tmp_path: Path) -> None:
    result = call("recommend", saved(tmp_path / "r.json"), "--output", tmp_path / "new" / "p.toml")
    read = tomllib.loads((tmp_path / "new" / "p.toml").read_text())
    assert read["configuration"] == {"precision": "bf16-autocast", "channels_last": "on", "compile": "default"}
    assert read["source"].endswith("r.json")
    assert "Wrote" in result.stderr
    assert "Wrote" not in result.stdout


def test_a_profile_holds_one_recommendation(tmp_path: Path) -> None:
    saved(tmp_path / "gpu.json")
    saved(tmp_path / "cpu.json", report(baseline(), device=CPU))
    error = refusal("recommend", tmp_path, "--output", tmp_path / "p.toml")
    assert "there are 2" in error.message
    assert not (tmp_path / "p.toml").exists()


def test_an_unwritable_output_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "r.json")
    error = refusal("recommend", path, "--output", path / "p.toml")
    assert "Cannot write" in error.message
    assert error.exit_code == 2


def test_no_valid_row_is_exit_code_1_with_the_reasons(tmp_path: Path) -> None:
    path = saved(tmp_path / "r.json", report(row("baseline", None, status="oom", reason="too big")))
    error = refusal("recommend", path, "--output", tmp_path / "p.toml")
    assert error.exit_code == 1
    assert "1 oom (baseline)" in error.message
    assert not (tmp_path / "p.toml").exists()
    assert refusal("recommend", saved(tmp_path / "e.json", report())).exit_code == 1
    assert refusal("recommend", saved(tmp_path / "l.json"), "--max-memory", "1MiB").exit_code == 1


@pytest.mark.parametrize("command", ["recommend", "report"])
def test_damaged_missing_and_empty_inputs_are_refused(command: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('{"schema_version": 1')
    (tmp_path / "empty").mkdir()
    for path, words in (("bad.json", "cut off"), ("none.json", "no file"), ("empty", "holds no report")):
        error = refusal(command, tmp_path / path)
        assert words in error.message
        assert error.exit_code == 2
        assert error.hint


def test_bad_options_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "r.json")
    assert "Cannot read the size" in refusal("recommend", path, "--max-memory", "lots").message
    for arguments in (["--objective", "beauty"], ["--format", "xml"], []):
        assert call("recommend", *([path, *arguments] if arguments else [])).exit_code == 2


def test_report_shows_the_table_again(tmp_path: Path) -> None:
    shown = call("report", saved(tmp_path / "r.json")).stdout
    for words in ("vae inference", "the ladder:", "Recommended for fps", "not_effective"):
        assert words in shown


def test_report_as_json_is_the_report_itself(tmp_path: Path) -> None:
    path = saved(tmp_path / "r.json")
    assert call("report", path, "--format", "json").stdout == path.read_text()
    other = saved(tmp_path / "o.json", report(baseline()))
    both = json.loads(call("report", path, other, "--format", "json").stdout)
    for each in both:
        jsonschema.validate(each, json_schema())
    assert len(both) == 2


def test_report_as_csv_is_one_table_over_all_reports(tmp_path: Path) -> None:
    saved(tmp_path / "a.json")
    saved(tmp_path / "b.json", report(baseline(), name="unet3d"))
    (tmp_path / "all.csv").write_text(call("report", tmp_path, "--format", "csv").stdout)
    data = pd.read_csv(tmp_path / "all.csv")
    assert len(data) == len(ladder_report().measurements) + 1
    assert set(data["workload"]) == {"vae", "unet3d"}


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize(
    "command", [["recommend"], ["report"], ["report", "--format", "markdown"], ["report", "--format", "csv"]]
)
def test_hostile_reports_are_shown_and_harm_nothing(text: str, command: list[str], tmp_path: Path) -> None:
    result = call(*command, saved(tmp_path / "r.json", hostile_report(text)))
    assert result.exit_code == 0
    assert "\x1b" not in result.output
    assert "\u202e" not in result.output


def test_a_configuration_that_no_toggle_here_knows_is_recommended_without_code(tmp_path: Path) -> None:
    for changes in ({"warp": "9"}, {"compile": "yesterday"}):
        path = saved(tmp_path / "r.json", report(baseline(), row("fast", 0.01, changes)))
        result = call("recommend", path)
        assert result.exit_code == 0
        assert "# No code for this configuration" in result.stdout


def test_schema_prints_the_json_schema() -> None:
    assert json.loads(call("schema").stdout) == json_schema()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("recommend", []),
        ("recommend", ["--format", "json"]),
        ("recommend", ["--format", "markdown"]),
        ("report", []),
        ("report", ["--format", "json"]),
        ("schema", []),
    ],
)
def test_reading_needs_no_heavy_import(name: str, options: list[str], tmp_path: Path) -> None:
    path = saved(tmp_path / "r.json")
    code = (
        "import sys, typer\n"
        f"from gpubench.cli.{name} import {name} as command\n"
        "app = typer.Typer()\n"
        "app.command()(command)\n"
        "app(standalone_mode=False)\n"
        "heavy = {'torch', 'pandas', 'scipy', 'numpy', 'matplotlib'} & sys.modules.keys()\n"
        "print('heavy:', *sorted(heavy), file=sys.stderr)\n"
    )
    arguments = [] if name == "schema" else [str(path), *options]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1].strip() == "heavy:"


def test_csv_needs_pandas_but_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom gpubench.cli.report import report\n"
        "report([Path(sys.argv[1])], 'csv')\nassert 'pandas' in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, saved(tmp_path / "r.json")], capture_output=True, check=True)
