from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn, optim

from gpubench.toggles.printed import run_lines
from gpubench.toggles.toggle import in_force
from gpubench.toggles.training.plateau import PLATEAU
from gpubench.worker.settling import TrainingStart
from gpubench.workloads.optimizing import Optimizer


def test_each_optimizer_has_one_that_is_told_the_losses(kit: Any) -> None:
    two = {name: Optimizer(parts=(part,)) for name, part in (("one", "body"), ("other", "head"))}
    for work in (kit.workload(), kit.workload(optimizers=two)):
        for value in PLATEAU.values:
            context = kit.prepare({"plateau": value}, work, mode="training")
            for _ in range(3):
                kit.step(context)
            assert PLATEAU.evidence(context, value).took_effect is True
            other = "off" if value == "on" else "on"
            assert PLATEAU.evidence(context, other).took_effect is False
        count = max(len(work.optimizers), 1)
        words = "optimizer" if count == 1 else "optimizers"
        proof = PLATEAU.evidence(context, "on")
        assert proof.detail.startswith(
            f"{count} of {count} {words} with a scheduler that is told the loss; the best of 3"
        )


def test_an_apply_that_does_nothing_is_caught(kit: Any) -> None:
    idle = dataclasses.replace(PLATEAU, apply=in_force)
    context = kit.prepare({"plateau": "on"}, mode="training", replace={"plateau": idle})
    kit.step(context)
    assert PLATEAU.evidence(context, "on").took_effect is False


def test_one_that_is_told_nothing_is_caught(kit: Any) -> None:
    context = kit.prepare({"plateau": "on"}, mode="training")
    context.step.collect = lambda loss: loss.detach()
    kit.step(context)
    assert PLATEAU.evidence(context, "on").took_effect is False


def test_the_rate_falls_where_the_loss_does_not_beside_the_schedule(kit: Any) -> None:
    still = Optimizer(
        kind="SGD", settings={"lr": 1.0}, schedule=lambda made: optim.lr_scheduler.ExponentialLR(made, 0.5)
    )
    # The loss is a constant, of which no parameter changes anything.
    work = kit.workload(optimizers={"one": still}, loss=lambda model, batch: 0 * model(batch[0]).sum() + 1)
    rates = {}
    for value in PLATEAU.values:
        context = kit.prepare({"plateau": value}, work, mode="training")
        for _ in range(12):
            kit.step(context)
        rates[value] = context.optimizers["one"].param_groups[0]["lr"]
    assert rates == {"off": 0.5**12, "on": 0.5**13}


def test_it_goes_back_with_the_start(kit: Any) -> None:
    context = kit.prepare({"plateau": "on"}, mode="training")
    start = TrainingStart(context)
    kit.step(context)
    assert context.loss_schedulers[0].last_epoch == 1
    start.restore()
    assert context.loss_schedulers[0].last_epoch == 0


def test_the_printed_lines_run(kit: Any) -> None:
    optimizer = optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0)
    for scope, names in (
        (None, {"optimizer": optimizer}),
        (kit.scope(mode="training"), {"optimizer": optimizer}),
        (kit.scope(mode="training", optimizers=[]), {"optimizers": {"a": optimizer}}),
    ):
        (made,) = run_lines(PLATEAU.usage("on", scope), **names)["plateaus"]
        assert (made.factor, made.patience, made.min_lrs) == (0.5, 10, [1e-6])
        made.step(torch.tensor(1.0))


def test_only_training_has_one(kit: Any) -> None:
    assert PLATEAU.applies(kit.scope()) == "inference has no optimizer"
    with pytest.raises(KeyError):
        PLATEAU.values["never"]
