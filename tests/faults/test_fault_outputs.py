"""Planted faults of outputs: each makes the step much faster, each is found, none is ever recommended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpubench.executor.worker_pool import WorkerPool
from gpubench.report import store
from gpubench.report.model import Protocol
from gpubench.worker.messages import Prepare, WorkloadChoice
from gpubench.worker.prepared_model import PreparedModel
from tests.faults import fault_toggle
from tests.running import BUSY, MODELS, ROOT, gpubench, gpubench_here

WORKLOADS = Path(__file__).with_name("fault_models.py")
WRONG = {
    "nan": "not finite",
    "one-nan": "1 value not finite",
    "zeros": "relative error",
    "double": "the norm is 2.0000",
    "integers": "is torch.int32",
    "complex": "is torch.complex64",
    "shape": "has shape [2, 32]",
    "stale": "of the last timed step",
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One run in which everything but the baseline computes something else, and is faster for it."""
    folder = tmp_path_factory.mktemp("outputs")
    values = [*WRONG, "later-double"]
    with fault_toggle.planted(folder):
        done = gpubench_here(
            "compare-opts", f"{WORKLOADS}:paced", "--set", f"fault={','.join(values)}", "--fix", "threads=1",
            "--strategy", "each", "--final-rounds", "1", *BUSY, "--format", "json", "--output", "report.json",
            cwd=folder,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def row_of(report: Any, value: str) -> Any:
    return next(row for row in report["measurements"] if row["configuration"]["fault"] == value)


@pytest.mark.parametrize("value", WRONG)
def test_a_wrong_output_is_found_though_it_is_fastest(value: str, report: Any) -> None:
    row, baseline = row_of(report, value), row_of(report, "off")
    assert row["status"] == "wrong"
    assert WRONG[value] in row["reason"]
    assert row["quality"]["passed"] is False
    assert row["latency_s"]["median"] < baseline["latency_s"]["median"] / 2


def test_an_output_that_turns_wrong_in_a_later_process_is_found(report: Any) -> None:
    row = row_of(report, "later-double")
    assert row["status"] == "wrong"
    assert any(
        flag["kind"] == "unreliable" and flag["detail"].startswith("wrong in a later process") for flag in row["flags"]
    )
    assert row["quality"]["passed"] is True  # that of its first process, which it kept up


def test_nothing_wrong_is_recommended(report: Any) -> None:
    assert row_of(report, "off")["status"] == "ok"
    assert report["recommendation"]["id"] == report["plan"]["baseline"]
    assert report["recommendation"]["tied_with"] == []


def test_a_stale_buffer_is_found_whichever_input_came_last(tmp_path: Path) -> None:
    # The buffer holds the output of the first input: right by chance where that was the last one timed.
    choice = WorkloadChoice(reference=f"{WORKLOADS}:paced", size=None, parameters={}, mode="inference")
    protocol = Protocol(warmup_min_s=0.0, min_sampling_s=0.0, max_sampling_s=0.1)
    with fault_toggle.planted(tmp_path), WorkerPool(choice, "cpu", protocol) as pool:
        made = pool.reference({"fault": "stale"}, {"fault": "off"})
        request = Prepare(
            model=0,
            choice=choice,
            device="cpu",
            configuration={"fault": "stale"},
            protocol=protocol,
            tolerance=1e-3,
            compile_cache=pool.compile_cache({"fault": "stale"}),
            reference_folder=made.folder,
        )
        resident = PreparedModel(request, lambda _: None)
        assert resident.prepare().quality.passed is True  # nothing shows before it is timed
        resident.sample(1)
        for last in (0, 1):
            while resident.stepper.last_batch != last:
                resident.stepper.step()
            quality = resident.check_last(every_batch=True).quality
            assert quality is not None
            assert quality.passed is False, last


@pytest.mark.slow
def test_a_toggle_that_does_nothing_is_not_effective(tmp_path: Path) -> None:
    # The plant makes bf16-autocast a toggle that only claims to be applied.
    plant = tmp_path / "sitecustomize.py"
    plant.write_text(
        "import dataclasses, gpubench.toggles.numerics.precision as p\n"
        "real = p.PRECISION.apply\n"
        "fake = lambda context, value: real(context, 'fp32') if value == 'bf16-autocast' else real(context, value)\n"
        "p.PRECISION = dataclasses.replace(p.PRECISION, apply=fake)\n"
    )
    done = gpubench(
        "compare-opts", f"{MODELS}:good", "--set", "precision=bf16-autocast", "--strategy", "each", "--final-rounds",
        "0", *BUSY, "--output", "report.json", cwd=tmp_path, env={"PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = store.load(tmp_path / "report.json")
    row = report.measurements[1]
    assert row.status == "not_effective", row
    assert "precision=bf16-autocast took no effect" in row.reason
    assert report.recommendation is not None
    assert report.recommendation.id == "baseline"
