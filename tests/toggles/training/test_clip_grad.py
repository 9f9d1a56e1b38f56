from __future__ import annotations

import ast
import dataclasses
from typing import Any

import pytest
import torch

from gpubench.toggles.toggle import AS_BUILT, in_force
from gpubench.toggles.training.clip_grad import CLIP_GRAD
from gpubench.workloads.optimizing import ALONE, Optimizer

WAYS = ("none", "foreach", "for-loop")


def clipped(kit: Any, clip: float | None) -> Any:
    return kit.workload(optimizers={ALONE: Optimizer(kind="SGD", settings={"lr": 1.0}, clip=clip)})


def norm(context: Any) -> float:
    grads = [parameter.grad.flatten() for parameter in context.model.parameters()]
    return float(torch.linalg.vector_norm(torch.cat(grads)))


@pytest.mark.parametrize("clip", [None, 0.01])
@pytest.mark.parametrize("value", [AS_BUILT, *WAYS])
def test_the_gradients_are_clipped_so(kit: Any, value: str, clip: float | None) -> None:
    context = kit.run({"clip_grad": value}, clipped(kit, clip), mode="training")
    assert CLIP_GRAD.evidence(context, AS_BUILT).took_effect is True
    for claimed in WAYS if value in WAYS else ():
        proof = CLIP_GRAD.evidence(context, claimed)
        assert proof.took_effect is (claimed == value), proof
    limit = {"none": None, AS_BUILT: clip}.get(value, clip or 1.0)
    assert context.clips == ({} if limit is None else {ALONE: limit})
    assert norm(context) <= 1.001 * (limit or 100.0)
    if limit == 0.01:
        assert norm(context) == pytest.approx(limit, rel=1e-2)


@pytest.mark.parametrize("value", WAYS)
def test_an_apply_that_does_nothing_is_caught(kit: Any, value: str) -> None:
    idle = dataclasses.replace(CLIP_GRAD, apply=in_force)
    # Torch's own choice is the grouped one, so that a workload that clips so shows `foreach` by itself.
    clip = 0.01 if value == "none" else None
    context = kit.run({"clip_grad": value}, clipped(kit, clip), mode="training", replace={"clip_grad": idle})
    proof = CLIP_GRAD.evidence(context, value)
    assert proof.took_effect is False, proof


@pytest.mark.parametrize("value", ["foreach", "for-loop"])
def test_it_is_seen_beside_other_toggles(kit: Any, value: str) -> None:
    for beside in ({"precision": "fp16-autocast"}, {"optimizer": "foreach"}):
        context = kit.run({"clip_grad": value, **beside}, mode="training")
        assert CLIP_GRAD.evidence(context, value).took_effect is True


def test_a_schedule_of_names_each_optimizer(kit: Any) -> None:
    two = {name: Optimizer(parts=(part,)) for name, part in (("one", "body"), ("other", "head"))}
    context = kit.run({"clip_grad": "foreach"}, kit.workload(optimizers=two), mode="training")
    assert context.clips == {"one": 1.0, "other": 1.0}
    proof = CLIP_GRAD.evidence(context, "foreach")
    assert proof.took_effect is True
    assert "of 2 of 2 optimizers, that of each by aten::_foreach_norm" in proof.detail
    del context.clips["other"]
    kit.trace_again(context)
    assert CLIP_GRAD.evidence(context, "foreach").took_effect is False


GROUPED = (
    "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<TensorListMetadata<1>, LpNormFunctor<float>>"
)


@pytest.mark.parametrize(("kernels", "took_effect"), [([GROUPED], True), (["reduce_kernel<512>"], False)])
def test_on_a_gpu_the_kernels_must_agree(kit: Any, kernels: list[str], took_effect: bool) -> None:
    context = kit.run({"clip_grad": "foreach"}, mode="training")
    context.trace = dataclasses.replace(context.trace, kernels=kit.trace([], kernels).kernels)
    assert CLIP_GRAD.evidence(context, "foreach").took_effect is took_effect


def test_without_a_trace_nothing_is_claimed(kit: Any) -> None:
    assert CLIP_GRAD.evidence(kit.prepare({"clip_grad": "none"}, mode="training"), "none").took_effect is None


def test_where_it_applies_and_what_is_printed(kit: Any) -> None:
    assert CLIP_GRAD.applies(kit.scope()) == "inference has no gradients"
    own = kit.scope(mode="training", own_train_step=True)
    assert CLIP_GRAD.applies(own) == "the workload's own train_step clips as it likes"
    for value in CLIP_GRAD.values:
        ast.parse(CLIP_GRAD.usage(value, None))
    assert "foreach=False" in CLIP_GRAD.usage("for-loop", None)
