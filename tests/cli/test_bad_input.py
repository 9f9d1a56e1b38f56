"""Wrong input gets one sentence with what is allowed and what to do, exit code 2, and no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpubench.cli.main import run

GOOD = str(Path(__file__).parents[1] / "study" / "models.py") + ":good"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `gpubench ARGUMENTS` says on standard error when it refuses them."""
    assert run(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.strip().splitlines()) == 1, captured.err
    assert captured.err.startswith("gpubench: ")
    assert "Traceback" not in captured.err
    return captured.err


AT_ONCE = [
    (["compare-opts", "resnet5"], ["resnet5", "Did you mean 'resnet50'?", "vae"]),
    (["compare-opts", "missing.py:make"], ["missing.py", "does not exist"]),
    (["compare-opts", "model.py"], ["which NAME", "model.py:NAME"]),
    (["compare-opts", "vae", "--workload", "unet3d"], ["Two workloads"]),
    (["compare-opts", "--fix", "precison=fp32"], ["precison", "Did you mean 'precision'?"]),
    (["compare-opts", "--fix", "precision"], ["not NAME=VALUE", "--fix precision=fp32"]),
    (["compare-opts", "--fix", "precision=fp32", "precision=tf32"], ["--fix precision", "fp32 and tf32", "only one"]),
    (["compare-opts", "vae", "--param", "task=encode", "task=decode"], ["--param task", "encode and decode"]),
    (["compare-opts", "vae", "--resolution", "64", "--param", "resolution=128"], ["--resolution and --param", "one"]),
    (["compare-opts", "--set", "compiler=default"], ["compiler", "compile"]),
    (["compare-opts", "--matrix", "defualt"], ["defualt", "Did you mean 'default'?", ".toml"]),
    (["compare-opts", "--matrix", "missing.toml"], ["missing.toml", "No such file"]),
    (["compare-opts", "--batch-size", "0"], ["--batch-size", "1"]),
    (["compare-opts", "--mode", "infer"], ["infer", "inference", "training"]),
    (["compare-opts", "--strategy", "all"], ["all", "ladder"]),
    (["compare-opts", "--max-memory", "lots"], ["lots", "8GiB"]),
    (["compare-opts", "--timeout", "0"], ["zero", "90s"]),
    (["compare-opts", "--output", "/dev/null/report.json"], ["/dev/null"]),
    (["compare-opts", "--nonsense"], ["--nonsense"]),
    (["batch-sweep", "--sizes", "1", "two"], ["two"]),
    (["batch-sweep", "--sizes", "1,x"], ["'x'", "whole number"]),
    (["nonsense"], ["nonsense"]),
    (["recommend", "missing.json"], ["missing.json"]),
    (["toggles", "precison"], ["precision"]),
    (["workloads", "resnet"], ["resnet50"]),
    (["claims", "cytdl"], ["cytdl", "Did you mean 'cytodl'?", "unet3d"]),
    (["claims", "missing.json"], ["missing.json"]),
]
NEEDS_THE_MODEL = [
    (["compare-opts", GOOD, "--device", "cuda:7"], ["cuda:7", "cpu"]),
    (["compare-opts", GOOD, "--size", "huge"], ["size"]),
    (["compare-opts", GOOD, "--param", "width=3"], ["width"]),
    (["compare-opts", GOOD, "--fix", "precision=fp23"], ["fp23", "fp32"]),
    (["compare-opts", GOOD, "--fix", "precision=tf32", "--device", "cpu"], ["tf32", "CUDA"]),
    (["compare-opts", GOOD, "--set", "optimizer=fused"], ["optimizer", "inference"]),
    (["batch-sweep", GOOD, "--sizes", "0"], ["0", "batch_size"]),
    (["batch-sweep", GOOD, "--sizes", "1", "--fix", "batch_size=2"], ["batch_size", "sweep"]),
    (["tile-sweep", GOOD, "--sizes", "64"], ["tile"]),
    (["compare-opts", GOOD[:-4] + "goood"], ["goood", "good"]),
]


@pytest.mark.parametrize(("arguments", "words"), [*AT_ONCE, *NEEDS_THE_MODEL])
def test_bad_input_is_refused(
    arguments: list[str],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refused(capsys, *arguments)
    for word in words:
        assert word in said
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_output_is_not_overwritten(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("thesis.txt").write_text("three years of work")
    assert "thesis.txt" in refused(capsys, "compare-opts", GOOD, "--output", "thesis.txt")
    assert Path("thesis.txt").read_text() == "three years of work"
