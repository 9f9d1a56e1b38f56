from __future__ import annotations

import dataclasses
from unittest import mock

import pytest
import torch

from gpubench.toggles.training.optimizer import OPTIMIZER
from gpubench.workloads.optimizing import OptimizerFacts

VALUES = tuple(value for value in OPTIMIZER.values if value != "capturable")  # which needs a GPU


def do_nothing(ran: str):
    """A toggle that always makes the optimizer `ran`, whatever it is asked for."""
    return dataclasses.replace(OPTIMIZER, apply=lambda context, value: OPTIMIZER.apply(context, ran))


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("precision", ["fp32", "fp16-autocast", "bf16-weights"])
def test_the_step_uses_the_implementation(kit, value, precision):
    context = kit.run({"optimizer": value, "precision": precision}, mode="training")
    proof = OPTIMIZER.evidence(context, value)
    assert proof.took_effect is True, proof
    assert f"foreach={value == 'foreach'} and fused={value == 'fused'}" in proof.detail


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("ran", VALUES)
def test_another_implementation_is_caught(kit, value, ran):
    if value == ran:
        return
    context = kit.run({"optimizer": value}, mode="training", replace={"optimizer": do_nothing(ran)})
    assert OPTIMIZER.evidence(context, value).took_effect is False


def test_an_apply_that_does_nothing_is_caught(kit):
    faulty = dataclasses.replace(OPTIMIZER, apply=lambda context, value: None)
    context = kit.prepare({"optimizer": "fused"}, mode="training", replace={"optimizer": faulty})
    proof = OPTIMIZER.evidence(context, "fused")
    assert proof.took_effect is False
    assert proof.detail == "the context has no optimizer"


def test_a_step_without_an_update_is_caught(kit):
    context = kit.prepare({"optimizer": "fused"}, mode="training")
    from gpubench.measure.trace import trace_step

    context.trace = trace_step(lambda: context.model(context.batches[0][0]), cuda=False)
    proof = OPTIMIZER.evidence(context, "fused")
    assert proof.took_effect is False
    assert proof.detail.startswith("no operator of an AdamW update")


def test_without_a_trace_nothing_is_claimed(kit):
    assert OPTIMIZER.evidence(kit.prepare({"optimizer": "fused"}, mode="training"), "fused").took_effect is None


FUSED = (
    "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedOptimizerTensorListMetadata<4>, "
    "at::native::(anonymous namespace)::FusedAdamMathFunctor<float, 4>>"
)
GROUPED = "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<TensorListMetadata<4>, PointwiseOp<float>>"


@pytest.mark.parametrize(
    ("value", "operator", "kernels", "took_effect"),
    [
        ("fused", "aten::_fused_adamw_", [FUSED, GROUPED], True),
        ("fused", "aten::_fused_adamw_", [GROUPED], False),
        ("fused", "aten::_foreach_addcdiv_", [GROUPED], False),
        ("fused", "aten::_fused_adamw_", [], None),
        ("foreach", "aten::_foreach_addcdiv_", [GROUPED], True),
        ("foreach", "aten::_foreach_addcdiv_", ["void vectorized_elementwise_kernel<4>"], False),  # one by one, quietly
        ("foreach", "aten::_foreach_addcdiv_", [FUSED], False),
        ("for-loop", "aten::addcdiv_", ["void vectorized_elementwise_kernel<4>"], True),
    ],
)
def test_on_a_gpu_the_kernels_must_agree(kit, value, operator, kernels, took_effect):
    context = kit.prepare({"optimizer": value}, mode="training")
    context.device = torch.device("cuda")
    context.trace = kit.trace([operator], kernels)
    assert OPTIMIZER.evidence(context, value).took_effect is took_effect


def test_it_takes_the_parameters_as_they_are_after_conversion(kit):
    context = kit.prepare({"optimizer": "fused", "precision": "bf16-weights"}, mode="training")
    held = [parameter for group in context.optimizers["optimizer"].param_groups for parameter in group["params"]]
    assert all(mine is theirs for mine, theirs in zip(held, context.model.parameters(), strict=True))
    assert {parameter.dtype for parameter in held} == {torch.bfloat16}


def test_only_training_has_one(kit):
    assert OPTIMIZER.applies(kit.scope(mode="training")) is None
    assert OPTIMIZER.applies(kit.scope()) == "inference has no optimizer"


def test_an_old_torch_has_no_fused_optimizer_on_a_cpu(kit):
    assert OPTIMIZER.unmet(kit.scope(torch_version=(2, 3), mode="training"), "fused") == (
        "needs torch 2.4, this is 2.3; fused optimizers run on a CPU since torch 2.4"
    )


def test_the_baseline_is_torchs_own_choice_on_the_device(kit):
    training = {"mode": "training"}
    assert OPTIMIZER.offered(kit.scope(**training)) == ("for-loop", "foreach", "fused", "capturable")
    offered = OPTIMIZER.offered(kit.scope(device=kit.AMPERE, **training))
    assert offered == ("foreach", "for-loop", "fused", "capturable")


@pytest.mark.parametrize(("where", "took_effect"), [("cuda", True), ("cpu", False)])
def test_a_capturable_optimizer_counts_its_steps_on_the_device(kit, where, took_effect):
    context = kit.prepare({"optimizer": "foreach"}, mode="training")
    context.device = torch.device("cuda")
    context.trace = kit.trace(["aten::_foreach_addcdiv_"], [GROUPED])
    parameter = next(context.model.parameters())
    context.optimizers["optimizer"].state[parameter] = {"step": mock.Mock(device=torch.device(where))}
    proof = OPTIMIZER.evidence(context, "capturable")
    assert proof.took_effect is took_effect
    assert f"the steps are counted on {where}" in proof.detail
    assert OPTIMIZER.evidence(context, "foreach").took_effect is True


def test_a_capturable_optimizer_is_for_gpus_and_not_for_all_kinds(kit):
    training = {"mode": "training", "device": kit.AMPERE}
    assert OPTIMIZER.unmet(kit.scope(**training), "capturable") is None
    assert "needs a CUDA device" in OPTIMIZER.unmet(kit.scope(mode="training"), "capturable")
    sgd = [OptimizerFacts(name="one", kind="SGD", parts=[""], settings={"lr": "0.1"})]
    assert OPTIMIZER.unmet(kit.scope(**training, optimizers=sgd), "capturable") == "is not there for SGD"
    assert OPTIMIZER.usage("capturable", None) == (
        "optimizer = torch.optim.AdamW(model.parameters(), lr=0.0001, foreach=True, fused=False, capturable=True)"
    )
