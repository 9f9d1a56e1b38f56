from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from gpubench.toggles.printed import run_lines
from gpubench.toggles.step_parts import nothing
from gpubench.toggles.toggle import in_force
from gpubench.toggles.training.accumulation import ACCUMULATION
from gpubench.worker.step import Stepper


def gradients(context: Any) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in context.model.parameters()]


@pytest.mark.parametrize("value", [1, 2, 4])
def test_the_gradients_and_the_loss_are_those_of_the_whole_batch(kit: Any, value: int) -> None:
    work = kit.workload(batch_size=8)
    whole, parts = (kit.prepare({"accumulation": each}, work, mode="training") for each in (1, value))
    steppers = [Stepper(context) for context in (whole, parts)]
    for stepper in steppers:
        stepper.run(0)
    for one, other in zip(gradients(whole), gradients(parts), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(steppers[0].loss, steppers[1].loss)
    for claimed in ACCUMULATION.values:
        proof = ACCUMULATION.evidence(parts, claimed)
        assert proof.took_effect is (claimed == value), proof


@pytest.mark.parametrize(
    "beside",
    [
        {"precision": "fp16-autocast"},
        {"precision": "bf16-weights"},
        pytest.param({"compile": "default"}, marks=pytest.mark.slow),
    ],
)
def test_beside_other_toggles(kit: Any, beside: dict[str, Any]) -> None:
    context = kit.prepare({"accumulation": 2, **beside}, kit.workload(batch_size=4), mode="training")
    before = [parameter.detach().clone() for parameter in context.model.parameters()]
    for _ in range(20 if "fp16" in str(beside) else 1):  # a scaler skips the first updates
        kit.step(context)
    assert ACCUMULATION.evidence(context, 2).took_effect is True
    after = context.model.parameters()
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_an_apply_that_does_nothing_is_caught(kit: Any) -> None:
    idle = dataclasses.replace(ACCUMULATION, apply=in_force)
    context = kit.prepare({"accumulation": 4}, mode="training", replace={"accumulation": idle})
    kit.step(context)
    assert ACCUMULATION.evidence(context, 4).took_effect is False


def test_a_part_that_does_not_go_backward_is_caught(kit: Any) -> None:
    context = kit.prepare({}, kit.workload(batch_size=4), mode="training")
    step = kit.prepare({"accumulation": 2}, kit.workload(batch_size=4), mode="training")
    passes = step.notes["accumulation.passes"]
    kit.step(step)
    passes["backward"].pop()
    proof = ACCUMULATION.evidence(step, 2)
    assert proof.took_effect is False
    assert proof.detail == "2 forward passes and 1 backward in the step, over 2 of 4 items each"
    assert step.step.backward is nothing
    assert ACCUMULATION.evidence(context, 1).took_effect is True


def test_where_it_cannot_be(kit: Any) -> None:
    training = {"mode": "training", "batch_size": 8, "input_shapes": [[8, 4]]}
    assert ACCUMULATION.applies(kit.scope(**training)) is None
    assert ACCUMULATION.unmet(kit.scope(**training), 4) is None
    assert ACCUMULATION.applies(kit.scope()) == "inference has no gradients"
    own = kit.scope(**training, own_train_step=True)
    assert ACCUMULATION.applies(own) == "the workload's own train_step calls backward itself"
    listed = kit.scope(**(training | {"input_shapes": [[8, 4], [3, 5]]}))
    assert "cannot be cut" in ACCUMULATION.applies(listed)
    small = kit.scope(**(training | {"batch_size": 2, "input_shapes": [[2, 4]]}))
    assert ACCUMULATION.unmet(small, 4) == (
        "needs a batch that 4 divides, so that all parts are of one size, and this one is 2"
    )
    assert ACCUMULATION.unmet(small, 4, {"batch_size": 16}) is None
    assert ACCUMULATION.unmet(small, 1) is None
    normalized = kit.scope(**training, modules={"BatchNorm2d": 3})
    assert ACCUMULATION.unmet(normalized, 2) == (
        "would compute something else: BatchNorm2d normalizes over what goes through the model at once"
    )


def test_the_printed_lines_run() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(3, 1), torch.randn(8, 3)
    names = run_lines(ACCUMULATION.usage(4, None))
    loss = names["backward_in_parts"](lambda batch: model(batch[0]).square().mean(), (x,))
    found = model.weight.grad.clone()
    model.zero_grad()
    whole = model(x).square().mean()
    whole.backward()
    torch.testing.assert_close(found, model.weight.grad)
    torch.testing.assert_close(loss, whole.detach())
