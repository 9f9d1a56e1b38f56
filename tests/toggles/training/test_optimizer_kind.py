from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest

from gpubench.toggles import usage
from gpubench.toggles.toggle import AS_BUILT, in_force
from gpubench.toggles.training.optimizer import OPTIMIZER
from gpubench.toggles.training.optimizer_kind import OPTIMIZER_KIND
from gpubench.workloads.optimizing import PLAIN, Optimizer, OptimizerFacts, facts_of

KINDS = ("AdamW", "Adam", "SGD")
IMPLEMENTATIONS = ("for-loop", "foreach", "fused")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", IMPLEMENTATIONS)
def test_each_kind_runs_in_each_implementation(kit: Any, kind: str, how: str) -> None:
    work = kit.workload(optimizers={"one": Optimizer(kind="RMSprop", settings={"lr": 0.1, "alpha": 0.9})})
    context = kit.run({"optimizer_kind": kind, "optimizer": how}, work, mode="training")
    assert OPTIMIZER.evidence(context, how).took_effect is True
    for claimed in KINDS:
        proof = OPTIMIZER_KIND.evidence(context, claimed)
        assert proof.took_effect is (claimed == kind), proof


def test_as_built_is_what_the_workload_asks_for(kit: Any) -> None:
    context = kit.run({"optimizer_kind": AS_BUILT}, mode="training")
    proof = OPTIMIZER_KIND.evidence(context, AS_BUILT)
    assert proof.took_effect is True
    assert proof.detail == "the parameters are updated by AdamW"


def test_an_apply_that_does_nothing_is_caught(kit: Any) -> None:
    idle = dataclasses.replace(OPTIMIZER_KIND, apply=in_force)
    context = kit.run({"optimizer_kind": "SGD"}, mode="training", replace={"optimizer_kind": idle})
    proof = OPTIMIZER_KIND.evidence(context, "SGD")
    assert proof.took_effect is False
    assert proof.detail == "the parameters are updated by AdamW, SGD took none in the profiled one"


def test_a_kind_that_takes_no_step_is_caught(kit: Any) -> None:
    context = kit.prepare({"optimizer_kind": "SGD"}, mode="training")
    assert OPTIMIZER_KIND.evidence(context, "SGD").took_effect is None
    context.trace = kit.trace(["aten::mm"])
    assert OPTIMIZER_KIND.evidence(context, "SGD").took_effect is False


@pytest.mark.parametrize(
    ("kind", "settings", "new", "expected"),
    [
        ("AdamW", {"lr": 3e-4, "betas": (0.9, 0.95)}, "Adam", {"lr": 3e-4, "betas": (0.9, 0.95)}),
        ("AdamW", {"lr": 3e-4, "betas": (0.9, 0.95), "weight_decay": 0.1}, "SGD",
         {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1}),
        ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}, "AdamW", {"lr": 1e-4}),
        ("SGD", {"lr": 0.1, "momentum": 0.5}, "SGD", {"lr": 0.1, "momentum": 0.5}),
        ("RMSprop", {"lr": 0.1, "momentum": 0.5}, "SGD", {"lr": 0.01, "momentum": 0.5}),
    ],
)  # fmt: skip
def test_settings_that_the_new_kind_lacks_are_dropped(
    kit: Any, kind: str, settings: dict[str, Any], new: str, expected: dict[str, Any]
) -> None:
    schedule = lambda made: None  # noqa: E731
    asked = Optimizer(kind=kind, settings=settings, clip=0.5, schedule=schedule)
    context = kit.prepare({}, kit.workload(optimizers={"one": asked}), mode="training")
    OPTIMIZER_KIND.apply(context, new)
    made = context.workload.optimizers["one"]
    assert made == Optimizer(kind=new, settings=expected, clip=0.5, schedule=schedule)
    facts = kit.facts(optimizers=facts_of({"one": asked}))
    assert OPTIMIZER_KIND.changes_facts(facts, new).optimizers == facts_of({"one": made})
    assert OPTIMIZER_KIND.changes_facts(facts, AS_BUILT) is facts


def test_both_toggles_print_that_kind(kit: Any) -> None:
    training = kit.scope(mode="training")
    sgd = "torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9"
    alone = usage({"optimizer_kind": "SGD", "optimizer": "for-loop"}, training)
    assert alone == f"import torch\noptimizer = {sgd})"
    both = usage({"optimizer_kind": "SGD", "optimizer": "fused"}, training)
    assert both == f"import torch\noptimizer = {sgd})\noptimizer = {sgd}, foreach=False, fused=True)"
    assert "SGD" not in usage({"optimizer_kind": AS_BUILT, "optimizer": "fused"}, training)


def test_what_cannot_be(kit: Any) -> None:
    training = kit.scope(mode="training")
    assert OPTIMIZER_KIND.applies(kit.scope()) == "inference has no optimizer"
    assert OPTIMIZER_KIND.unmet(training, "AdamW") == "is what the workload trains with, by as-built"
    assert OPTIMIZER_KIND.unmet(training, "SGD") is None
    gan = [PLAIN, msgspec.structs.replace(PLAIN, name="other", kind="SGD")]
    assert OPTIMIZER_KIND.unmet(kit.scope(mode="training", optimizers=gan), "AdamW") is None
    rmsprop = [OptimizerFacts(name="one", kind="RMSprop", parts=[""], settings={})]
    scope = kit.scope(mode="training", optimizers=rmsprop)
    assert OPTIMIZER.unmet(scope, "fused") == "is not there for RMSprop"
    assert OPTIMIZER.unmet(scope, "fused", {"optimizer_kind": "SGD"}) is None
    assert OPTIMIZER.unmet(scope, "fused", {"optimizer_kind": AS_BUILT}) == "is not there for RMSprop"
