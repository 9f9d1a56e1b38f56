"""What a training step and its copies do on a real GPU, each value in this process on a small model."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from gpubench.measure.trace import trace_step
from gpubench.toggles import bundled_toggles
from gpubench.toggles.toggle import in_force
from gpubench.worker import prepare
from gpubench.worker.step import Stepper
from gpubench.workloads.loader import Loaded
from gpubench.workloads.workload import Workload

HAS_GPU = torch.cuda.is_available()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_GPU, reason="needs an NVIDIA GPU: torch.cuda.is_available() is false here"),
]
WIDTH = 256


class Rows:
    """Row i is full of i / 64."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full((WIDTH,), index / 64), torch.full((WIDTH,), 1.0)


def stepper(mode: Any, idle: str = "", **configuration: str | int) -> Stepper:
    """A step after a few in turn, with the trace of one more; the toggle called `idle` does nothing."""
    of = Workload(
        name="rows", item="row", batch_size=32, dataset=Rows,
        build=lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)),
        infer=lambda model, batch, options: model(batch[0]),
        loss=lambda model, batch: (model(batch[0]) - batch[1]).square().mean(),
    )  # fmt: skip
    loaded = Loaded(workload=of, reference="rows.py:make", size="default", parameters={}, source_hash=None)
    if mode == "training":
        configuration = {"optimizer": "foreach", **configuration}
    context = prepare.build(loaded, mode, torch.device("cuda"), dict(configuration), 0)
    known = dict(bundled_toggles())
    if idle:
        known[idle] = dataclasses.replace(known[idle], apply=in_force)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "beside", lambda _: known)
        prepare.apply_toggles(context, prepare.make_batches(loaded, 32, 2, 0))
    made = Stepper(context)
    for _ in range(6):
        made.step()
    context.trace = trace_step(lambda: made.run(0), cuda=True)
    return made


def proof(made: Stepper, name: str, value: str | int) -> tuple[bool | None, str]:
    found = bundled_toggles()[name].evidence(made.context, value)
    print(name, value, found)  # shown where a test fails, or with -s
    return found.took_effect, found.detail


@pytest.mark.parametrize("pipeline", ["host", "loader"])
@pytest.mark.parametrize("value", ["pageable", "pinned", "prefetch"])
def test_transfer(value: str, pipeline: str) -> None:
    made = stepper("inference", transfer=value, pipeline=pipeline)
    for claimed in ("pageable", "pinned", "prefetch"):
        took_effect, detail = proof(made, "transfer", claimed)
        assert took_effect is (claimed == value), detail
    plain = stepper("inference", pipeline="resident")
    for index in (0, 1, 0, 0, 1):  # out of turn as well
        made.run(index)
        plain.run(index)
        torch.testing.assert_close(made.output, plain.output)


@pytest.mark.parametrize("value", ["pinned", "prefetch"])
def test_transfer_that_was_not_applied_is_caught(value: str) -> None:
    assert proof(stepper("inference", "transfer", transfer=value, pipeline="host"), "transfer", value)[0] is False


def test_workers_with_pinned_memory() -> None:
    made = stepper("inference", transfer="prefetch", pipeline="loader", loader_workers=2, prefetch_factor=4)
    for name, value in (
        ("transfer", "prefetch"),
        ("loader_workers", 2),
        ("prefetch_factor", 4),
        ("pipeline", "loader"),
    ):
        took_effect, detail = proof(made, name, value)
        assert took_effect is True, detail


@pytest.mark.parametrize("value", ["for-loop", "foreach", "fused", "capturable"])
def test_optimizer(value: str) -> None:
    made = stepper("training", optimizer=value)
    assert proof(made, "optimizer", value)[0] is True
    if value != "capturable":
        assert proof(made, "optimizer", "capturable")[0] is False
    kind = stepper("training", optimizer=value, optimizer_kind="Adam")
    assert proof(kind, "optimizer", value)[0] is True
    assert proof(kind, "optimizer_kind", "Adam")[0] is True


@pytest.mark.parametrize("value", ["none", "foreach", "for-loop"])
def test_clip_grad(value: str) -> None:
    made = stepper("training", clip_grad=value)
    for claimed in ("none", "foreach", "for-loop"):
        took_effect, detail = proof(made, "clip_grad", claimed)
        assert took_effect is (claimed == value), detail


@pytest.mark.parametrize("value", ["never", "every-step", "every-10"])
def test_loss_reading(value: str) -> None:
    made = stepper("training", loss_reading=value)
    assert proof(made, "loss_reading", value)[0] is True


def test_a_loss_that_is_not_read_is_caught() -> None:
    made = stepper("training", "loss_reading", loss_reading="every-step")
    assert proof(made, "loss_reading", "every-step")[0] is False


@pytest.mark.parametrize("compiled", ["off", "default", "reduce-overhead"])
def test_accumulation_and_plateau(compiled: str) -> None:
    made = stepper("training", accumulation=4, plateau="on", compile=compiled)
    plain = stepper("training")
    for name, value in (("accumulation", 4), ("plateau", "on")):
        took_effect, detail = proof(made, name, value)
        assert took_effect is True, detail
    assert made.loss is not None and plain.loss is not None
    torch.testing.assert_close(made.loss, plain.loss, rtol=1e-2, atol=1e-4)
