"""fp16 autocast with a gradient scale that is too large at first, by real steps with torch's own scaler on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gpubench.measure.quality import compare_training
from gpubench.measure.trace import trace_step
from gpubench.report.model import Protocol, Quality
from gpubench.toggles import all_toggles
from gpubench.worker import reference
from gpubench.worker.messages import MakeReference, Prepare, WorkloadChoice
from gpubench.worker.once import make_reference
from gpubench.worker.prepare import apply_toggles, build, make_batches
from gpubench.worker.prepared_model import PreparedModel
from gpubench.worker.seeding import seed_step
from gpubench.worker.settling import MOST_STARTS, TrainingStart, settled_steps
from gpubench.worker.step import Stepper
from gpubench.workloads.loader import Loaded
from gpubench.workloads.workload import Batch, Workload

STEPS = 3


class Net(nn.Module):
    """With running statistics and random numbers, which a second start must find as the first one did."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers(x)
        return out


def summed(weight: float) -> Any:
    """A loss that is summed over the batch: its gradients in fp16 overflow long before those of a mean would."""

    def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
        return weight * (model(batch[0]).float() - batch[1]).square().sum()

    return loss


def inputs(batch_size: int, generator: torch.Generator) -> Batch:
    return torch.randn(batch_size, 16, generator=generator), torch.randn(batch_size, 4, generator=generator)


def workload(weight: float = 300.0) -> Workload:
    return Workload(name="net", item="row", batch_size=64, build=Net, inputs=inputs, loss=summed(weight))


def stepper(precision: str, weight: float) -> Stepper:
    loaded = Loaded(workload=workload(weight), reference="net", size="default", parameters={}, source_hash=None)
    configuration: dict[str, str | int] = {"precision": precision, "optimizer": "for-loop"}
    context = build(loaded, "training", torch.device("cpu"), configuration, 0)
    apply_toggles(context, make_batches(loaded, context.batch_size, 2, 0))
    return Stepper(context)


def train(plain: Stepper) -> tuple[list[float], dict[str, torch.Tensor]]:
    before = reference.parameters(plain.context.model)
    return reference.training_steps(plain, before, [], STEPS, 0)


def quality(weight: float, *, settles: bool = True) -> tuple[Quality, Stepper]:
    """fp16 autocast against fp32, as a worker compares them; without `settles`, from the very first step."""
    expected_losses, expected = train(stepper("fp32", weight))
    half = stepper("fp16-autocast", weight)
    before = reference.parameters(half.context.model)
    start = TrainingStart(half.context) if settles else None
    seed_step(0, 0)
    half.run(0)
    assert half.loss is not None
    losses, update = settled_steps(half, start, before, [float(half.loss)], STEPS, 0)
    tolerance = all_toggles()["precision"].tolerance["fp16-autocast"]
    found = compare_training(losses, expected_losses, update, expected, tolerance=tolerance, what="fp32")
    return found, half


@pytest.mark.parametrize("weight", [1e-4, 1.0, 300.0])
def test_healthy_training_is_right_whatever_the_scale_of_its_loss(weight: float) -> None:
    found, half = quality(weight)
    assert found.passed is True, found.reason
    model, optimizer = half.context.model, next(iter(half.context.optimizers.values()))
    assert isinstance(model, Net) and optimizer is not None
    norm = model.layers[1]
    assert isinstance(norm, nn.BatchNorm1d) and norm.num_batches_tracked is not None
    assert int(norm.num_batches_tracked) == STEPS  # those of earlier starts are forgotten
    assert {int(state["step"]) for state in optimizer.state.values()} == {STEPS}


def test_a_worker_lets_the_scale_settle(tmp_path: Path) -> None:
    reference_folder, cache = tmp_path / "reference", tmp_path / "cache"
    cache.mkdir()
    choice = WorkloadChoice(reference=f"{__file__}:workload", size=None, parameters={}, mode="training")
    plain: dict[str, str | int] = {"precision": "fp32", "optimizer": "for-loop"}
    protocol = Protocol(warmup_min_s=0.0)
    make_reference(MakeReference(choice=choice, device="cpu", configuration=plain, protocol=protocol,
                                 folder=str(reference_folder)))  # fmt: skip
    request = Prepare(
        model=0, choice=choice, device="cpu", configuration={**plain, "precision": "fp16-autocast"}, protocol=protocol,
        tolerance=all_toggles()["precision"].tolerance["fp16-autocast"], compile_cache=str(cache),
        reference_folder=str(reference_folder),
    )  # fmt: skip
    worker = PreparedModel(request, lambda _: None)
    found = worker.prepare().quality
    assert found.passed is True, found.reason
    assert worker.start is None  # what it was needed for is done, and it would count as memory


def test_skipped_updates_would_be_called_wrong() -> None:
    found, _ = quality(300.0, settles=False)
    assert found.passed is False
    assert "100% of the parameters that should have moved did not" in found.reason


def test_the_evidence_tells_of_skipped_steps() -> None:
    for weight, told in ((1e-4, False), (300.0, True)):
        _, half = quality(weight)
        half.context.trace = trace_step(half.step, cuda=False)
        detail = all_toggles()["precision"].evidence(half.context, "fp16-autocast").detail
        assert "the gradient scale is " in detail
        assert ("that overflowed and were skipped" in detail) == told, detail


def test_training_that_always_overflows_stays_wrong() -> None:
    half = stepper("fp16-autocast", 1.0)
    half.context.step.backward = lambda loss: (loss * float("inf")).backward()
    calls = 0

    def skipped() -> bool:
        nonlocal calls
        calls += 1
        return True

    half.context.skipped = skipped
    before = reference.parameters(half.context.model)
    start = TrainingStart(half.context)
    half.context.step.update = lambda: None
    seed_step(0, 0)
    half.run(0)
    _, update = settled_steps(half, start, before, [1.0], STEPS, 0)
    assert calls == MOST_STARTS
    assert not any(bool(change.any()) for change in update.values())


def test_where_nothing_skips_the_first_steps_count() -> None:
    plain = stepper("fp32", 1.0)
    assert plain.context.skipped is None
    before = reference.parameters(plain.context.model)
    seed_step(0, 0)
    plain.run(0)
    assert plain.loss is not None
    losses, _ = settled_steps(plain, None, before, [float(plain.loss)], STEPS, 0)
    assert losses == train(stepper("fp32", 1.0))[0]
