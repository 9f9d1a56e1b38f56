from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

import gpubench.toggles
from gpubench.cli.toggles import card, toggles
from gpubench.errors import GpubenchError
from gpubench.toggles import all_toggles, get

app = typer.Typer()
app.command()(toggles)


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"}, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_the_list_names_every_toggle_in_order():
    header, *rows = (line for line in invoke().splitlines() if line[:1].strip())  # wrapped lines begin with spaces
    assert header.split()[:2] == ["toggle", "stage"]
    assert [row.split()[0] for row in rows[:-1]] == list(all_toggles())
    assert "tf32, bf16-autocast" in invoke()


def test_a_card_has_all_that_is_known():
    text = invoke("precision")
    for part in (
        "precision: The number format",
        "stage      dtype",
        "applies    everywhere.",
        "evidence   Whether the convolutions",
        "claims     vae-guide, gpu-guide, cytodl",
        "source     PyTorch documentation",
        "fp32 (baseline): 32-bit arithmetic",
        "needs a CUDA device; compute capability 8.0 (CUDA)",
        "    torch.backends.cudnn.allow_tf32 = True",
    ):
        assert part in text


def test_whole_numbers_are_explained():
    text = invoke("batch_size")
    assert "numbers    1 to 65536: the first dimension of every input" in text
    assert "stage      problem (changes what is computed)" in text
    assert "offers     The workload's own batch size" in text


def test_texts_are_explained():
    text = invoke("keep_fp32")
    assert "texts      names of modules or classes of layers, joined by +: GroupNorm+blocks.*.attn" in text
    assert "names = ['LayerNorm', 'head']" in text
    assert "first-last, or LayerNorm+head" in invoke()


def test_json_holds_the_same():
    cards = json.loads(invoke("--format", "json"))
    assert cards == [card(toggle) for toggle in all_toggles().values()]
    (one,) = json.loads(invoke("compile", "--format", "json"))
    assert one["values"][2]["value"] == "reduce-overhead"
    assert one["values"][2]["needs"] == ["a CUDA device", "the mode uses CUDA graphs"]


def test_what_a_value_needs_beside_it_is_told(monkeypatch):
    needy = dataclasses.replace(get("compile"), prerequisites={"default": {"precision": ("bf16-weights", "tf32")}})
    monkeypatch.setitem(all_toggles(), "compile", needy)
    assert "needs precision=bf16-weights or tf32" in invoke("compile")


def test_an_unknown_toggle_is_an_error():
    with pytest.raises(GpubenchError, match="Unknown toggle 'compil'"):
        CliRunner().invoke(app, ["compil"], catch_exceptions=False)


def test_foreign_text_is_no_markup(monkeypatch):
    foreign = dataclasses.replace(get("compile"), name="[red]mine[/]", summary="[bold]x[/bold] [/]")
    monkeypatch.setattr(gpubench.toggles, "all_toggles", lambda: {foreign.name: foreign})
    assert "[red]mine[/]" in invoke()
    assert "[bold]x[/bold] [/]" in invoke()
    assert "[red]mine[/]: [bold]x[/bold] [/]" in invoke("[red]mine[/]")


def test_neither_form_imports_torch():
    for arguments in ([], ["precision"], ["--format", "json"]):
        code = (
            "import sys, typer; from gpubench.cli.toggles import toggles; app = typer.Typer(); app.command()(toggles);"
            f"app({arguments!r}, standalone_mode=False); sys.exit('torch' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0
