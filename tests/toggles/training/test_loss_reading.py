from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from gpubench.measure.trace import Operator
from gpubench.toggles.toggle import in_force
from gpubench.toggles.training.loss_reading import LOSS_READING

ITEM = "aten::item"


@pytest.mark.parametrize("value", LOSS_READING.values)
@pytest.mark.parametrize("beside", [{}, pytest.param({"compile": "default"}, marks=pytest.mark.slow)])
def test_the_steps_read_so_many_losses(kit: Any, value: str, beside: dict[str, Any]) -> None:
    context = kit.run({"loss_reading": value, "optimizer": "fused", **beside}, mode="training")
    for claimed in LOSS_READING.values:
        proof = LOSS_READING.evidence(context, claimed)
        assert proof.took_effect is (claimed == value), proof
    # A fused optimizer reads nothing by itself; other operators do so within them.
    read = [operator for operator in context.trace.operators if operator.name == ITEM and operator.depth == 0]
    assert len(read) == (value == "every-step")


def test_every_tenth_is_counted_by_the_step_itself(kit: Any) -> None:
    context = kit.prepare({"loss_reading": "every-10"}, mode="training")
    for steps in range(1, 22):
        kit.step(context)
        assert context.notes["loss_reading.read"].losses == -(-steps // 10)
        assert LOSS_READING.evidence(context, "every-10").took_effect is True
    assert LOSS_READING.evidence(context, "every-10").detail.startswith("3 losses read in 21 steps, the last is ")
    context.notes["loss_reading.read"].losses -= 1
    assert LOSS_READING.evidence(context, "every-10").took_effect is False


@pytest.mark.parametrize("value", ["every-step", "every-10"])
def test_an_apply_that_does_nothing_is_caught(kit: Any, value: str) -> None:
    idle = dataclasses.replace(LOSS_READING, apply=in_force)
    context = kit.run({"loss_reading": value}, mode="training", replace={"loss_reading": idle})
    assert LOSS_READING.evidence(context, value).took_effect is False


def test_a_step_that_shows_no_reading_is_caught(kit: Any) -> None:
    context = kit.prepare({"loss_reading": "every-step"}, mode="training")
    kit.step(context)
    assert LOSS_READING.evidence(context, "every-step").took_effect is None  # no trace
    context.trace = kit.trace(["aten::mm"])
    assert LOSS_READING.evidence(context, "every-step").took_effect is False


@pytest.mark.parametrize(
    ("copies", "calls", "took_effect"),
    [
        (("Memcpy DtoH (Device -> Pageable)",), ("cudaMemcpyAsync", "cudaStreamSynchronize"), True),
        (("Memcpy HtoD (Pageable -> Device)",), ("cudaMemcpyAsync", "cudaStreamSynchronize"), False),
        (("Memcpy DtoH (Device -> Pinned)",), ("cudaMemcpyAsync",), False),
        ((), (), None),
    ],
)
def test_on_a_gpu_it_copies_and_waits(kit: Any, copies: Any, calls: Any, took_effect: bool | None) -> None:
    context = kit.prepare({"loss_reading": "every-step"}, mode="training")
    kit.step(context)
    context.device = torch.device("cuda")
    item = Operator(name=ITEM, dtypes=("float",), shapes=((),), strides=((),))
    context.trace = dataclasses.replace(
        kit.trace(), operators=(item,), copies=copies, cuda_calls=calls, names=frozenset(calls)
    )
    assert LOSS_READING.evidence(context, "every-step").took_effect is took_effect


def test_a_train_step_of_the_workloads_own_is_read_too(kit: Any) -> None:
    def own(model: Any, batch: Any, optimizers: Any) -> torch.Tensor:
        optimizers["optimizer"].zero_grad()
        loss: torch.Tensor = model(batch[0]).square().mean()
        loss.backward()
        optimizers["optimizer"].step()
        return loss

    context = kit.run({"loss_reading": "every-step"}, kit.workload(loss=None, train_step=own), mode="training")
    assert LOSS_READING.evidence(context, "every-step").took_effect is True


def test_only_training_has_a_loss(kit: Any) -> None:
    assert LOSS_READING.applies(kit.scope(mode="training")) is None
    assert LOSS_READING.applies(kit.scope()) == "inference has no optimizer"
