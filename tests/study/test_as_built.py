"""Whole runs of workloads whose own code sets what they compute in."""

from __future__ import annotations

from pathlib import Path

import msgspec

from gpubench.report import store
from gpubench.study.launch_ab import builder_of_sides
from gpubench.study.request import StudyRequest
from gpubench.worker.messages import ProbeResult
from tests import reports
from tests.running import BUSY
from tests.study.conftest import gpubench_here

MODELS = Path(__file__).with_name("own_models.py")
SHORT = ["--strategy", "each", "--final-rounds", "0", *BUSY, "--output", "report.json"]


def test_a_model_in_bf16_is_a_baseline_of_its_own_name_and_is_checked_against_fp32(tmp_path: Path) -> None:
    done = gpubench_here("compare-opts", f"{MODELS}:half", "--set", "precision=fp32,bf16-weights", *SHORT, cwd=tmp_path)
    report = store.load(tmp_path / "report.json")
    baseline, skipped, fp32 = sorted(report.measurements, key=lambda row: row.id)
    assert (baseline.status, baseline.configuration["precision"]) == ("ok", "as-built")
    assert [each.name for each in baseline.evidence if each.name] == ["as built: bf16"]
    assert baseline.quality is not None
    assert (baseline.quality.passed, baseline.quality.max_relative_error) == (True, 0.06)
    assert 1e-4 < (baseline.quality.relative_error or 0) < 0.06  # of bf16 against fp32
    assert (fp32.status, fp32.quality and fp32.quality.relative_error) == ("ok", 0)
    assert (skipped.id, skipped.status) == ("precision=bf16-weights", "skipped")
    assert "baseline (as built: bf16)" in done.stdout
    text = " ".join(report.notes)
    assert "own code computes in bf16, which is the baseline (precision=as-built)" in text
    assert "torch.is_grad_enabled() is False" in text
    assert "leaves parts of the model in training mode (1)" in text


def test_sides_of_ab_are_measured_as_they_are_built_where_one_sets_a_precision() -> None:
    """Converting the side that was changed to bf16 would undo the change that is to be measured."""
    like = reports.report(device=reports.CPU)

    def side(*dtypes: str) -> ProbeResult:
        workload = msgspec.structs.replace(like.workload, dtypes=list(dtypes))
        return ProbeResult(workload=workload, device=like.device, environment=like.environment, modules={})

    request = StudyRequest(workload="resnet50")
    for sides in ((side("fp32"), side("bf16")), (side("bf16"), side("fp32"))):
        assert builder_of_sides(request, sides).defaults["precision"] == "as-built"
    assert builder_of_sides(request, (side("fp32"), side("fp32"))).defaults["precision"] == "fp32"


def test_a_model_that_never_runs_in_fp32_is_not_checked_and_that_is_said(tmp_path: Path) -> None:
    gpubench_here("compare-opts", f"{MODELS}:casting", "--set", "precision=fp32", *SHORT, cwd=tmp_path)
    report = store.load(tmp_path / "report.json")
    baseline, fp32 = report.measurements
    assert baseline.quality is not None
    assert baseline.quality.passed is None
    assert baseline.quality.reason == (
        "there is no fp32 reference, because the model does not run in fp32: 1 of 1 convolutions, matrix products and "
        "attentions ran below fp32: bf16"
    )
    assert "quality_unchecked" in [flag.kind for flag in baseline.flags]
    assert fp32.status == "not_effective"
    assert report.recommendation is None or report.recommendation.id == "baseline"
