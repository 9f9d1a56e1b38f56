"""Planted facts come out as figures: known slowdown, evidence, quality, what was compiled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gpubench.report.store import json_schema
from tests.running import BUSY
from tests.study.conftest import gpubench_here


def compare(model: str, models: Path, folder: Path, *more: str) -> Any:
    done = gpubench_here(
        "compare-opts", f"{models}:{model}", "--format", "json", "--output", "report.json", *more, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    jsonschema.validate(report, json_schema())
    return report


@pytest.mark.slow
def test_a_technique_that_costs_is_not_recommended(models: Path, tmp_path: Path) -> None:
    report = compare("slower_in_bf16", models, tmp_path, "--set", "precision=bf16-autocast", "--final-rounds", "2",
                     *BUSY)  # fmt: skip
    rows = {row["id"]: row for row in report["measurements"]}
    # The quickest blocks: where others use the machine for a while, a sleep of 20 ms may end when one of 40 does.
    assert 1.6 <= min(rows["precision=bf16-autocast"]["samples_s"]) / min(rows["baseline"]["samples_s"]) <= 2.4
    for row in rows.values():
        assert min(row["samples_s"]) <= row["latency_s"]["median"] <= max(row["samples_s"])
    assert report["recommendation"]["id"] == "baseline"
    assert report["recommendation"]["speedup"] == 1.0


def test_rows_carry_evidence_quality_and_utilization(models: Path, tmp_path: Path) -> None:
    report = compare("good", models, tmp_path, "--set", "precision=bf16-autocast", "--final-rounds", "0")
    for row in report["measurements"]:
        assert row["status"] == "ok", row["reason"]
        assert {one["toggle"] for one in row["evidence"]} == set(row["configuration"])
        assert all(one["took_effect"] for one in row["evidence"])
        assert row["quality"]["passed"] is True
        assert row["utilization"]["gpu_utilization_percent"] is None
        assert row["utilization"]["unavailable"]["gpu_utilization_percent"]
        assert row["utilization"]["process_cpu_percent"]["mean"] > 10
    plain, lower = report["measurements"]
    assert plain["value_range"] is None
    assert plain["unavailable"]["value_range"] == "it is not taken of a row whose outputs are held to fp32's error"
    assert lower["value_range"]["dtypes"] == ["bfloat16"]
    assert lower["value_range"]["largest_activation"] > 0
    assert lower["value_range"]["near_overflow"] == 0
    assert (
        report["measurements"][1]["quality"]["relative_error"] > report["measurements"][0]["quality"]["relative_error"]
    )


def test_training_is_compared_step_by_step(models: Path, tmp_path: Path) -> None:
    report = compare(
        "good", models, tmp_path, "--mode", "training", "--set", "optimizer=fused,foreach", "--strategy", "each",
        "--final-rounds", "0",
    )  # fmt: skip
    for row in report["measurements"]:
        assert row["status"] == "ok", row["reason"]
        quality = row["quality"]
        assert len(quality["losses"]) == len(quality["reference_losses"]) == report["protocol"]["quality_steps"]
        assert quality["losses"] == pytest.approx(quality["reference_losses"], rel=1e-3)
        assert quality["parameter_relative_error"] <= 0.01


@pytest.mark.slow
def test_compiled_rows_are_compiled_and_pay_once(models: Path, tmp_path: Path) -> None:
    report = compare("good", models, tmp_path, "--set", "compile=default", "--strategy", "each", "--final-rounds", "1")
    row = {one["id"]: one for one in report["measurements"]}["compile=default"]
    assert row["status"] == "ok", row["reason"]
    evidence = next(one for one in row["evidence"] if one["toggle"] == "compile")
    assert evidence["took_effect"] is True
    assert row["compile_time_s"] > 20 * row["latency_s"]["median"]


@pytest.mark.slow
def test_without_fork_everything_else_is_the_same(models: Path, tmp_path: Path) -> None:
    done = gpubench_here(
        "compare-opts", f"{models}:good", "--set", "precision=bf16-autocast", "--strategy", "each", "--final-rounds",
        "0", "--format", "json", "--output", "report.json", cwd=tmp_path, env={"GPUBENCH_WORKERS": "spawn"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [row["status"] for row in json.loads(done.stdout)["measurements"]] == ["ok", "ok"]


@pytest.mark.slow
def test_dropout_is_no_error_of_a_compiled_training(models: Path, tmp_path: Path) -> None:
    report = compare("with_dropout", models, tmp_path, "--mode", "training", "--set", "compile=default", "--strategy",
                     "each", "--final-rounds", "0")  # fmt: skip
    plain, compiled = report["measurements"]
    assert plain["quality"]["max_relative_error"] == pytest.approx(1e-3)  # the same seed, the same numbers
    assert compiled["status"] == "ok", compiled["reason"]
    assert compiled["quality"]["max_relative_error"] > 1.1e-3  # widened by what chance changes


def test_random_outputs_are_compared_under_one_seed(models: Path, tmp_path: Path) -> None:
    report = compare("draws_in_inference", models, tmp_path, "--set", "threads=1", "--strategy", "each",
                     "--final-rounds", "0")  # fmt: skip
    for row in report["measurements"]:
        assert row["quality"]["passed"] is True
        assert row["quality"]["relative_error"] < 1e-6


def test_graph_breaks_are_flagged_and_dataclasses_are_outputs(models: Path, tmp_path: Path) -> None:
    report = compare("breaks_graph", models, tmp_path, "--set", "compile=default", "--strategy", "each",
                     "--final-rounds", "0")  # fmt: skip
    plain, compiled = report["measurements"]
    assert not any(flag["kind"] == "partly_compiled" for flag in plain["flags"])
    assert {"kind": "partly_compiled", "detail": "1 graph break", "effect": "caution"} in compiled["flags"]
    assert compiled["quality"]["passed"] is True
    assert (compiled["counts"]["frames_compiled"], compiled["counts"]["recompiles"]) == (2, 0)
    assert plain["counts"]["frames_compiled"] is None and plain["counts"]["operators"] > 0


def test_a_step_that_returns_nothing_is_said_before_measuring(models: Path, tmp_path: Path) -> None:
    done = gpubench_here("compare-opts", f"{models}:returns_nothing", "--set", "threads=1", cwd=tmp_path)
    assert done.returncode == 2
    assert "returned an object of type dict without tensors (output.answer: it is text)" in " ".join(
        done.stderr.split()
    )
    assert not (tmp_path / "report.json").exists()


def test_a_baseline_that_does_not_fit_ends_nothing(models: Path, tmp_path: Path) -> None:
    report = compare("greedy_in_fp32", models, tmp_path, "--set", "precision=bf16-autocast", "--final-rounds", "0")
    rows = {row["id"]: row["status"] for row in report["measurements"]}
    assert rows == {"baseline": "oom", "precision=bf16-autocast": "ok"}
    assert report["recommendation"] is None or report["recommendation"]["speedup"] is None
