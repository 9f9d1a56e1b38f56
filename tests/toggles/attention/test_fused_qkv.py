from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from gpubench.toggles.attention.fused_qkv import FUSED_QKV
from gpubench.toggles.toggle import in_force

IDLE = {"fused_qkv": dataclasses.replace(FUSED_QKV, apply=in_force)}


def layers(kit, attending, **changes):
    return kit.workload(attending.Layers, inputs=attending.tokens, **changes)


@pytest.mark.parametrize("precision", ["fp32", "bf16-autocast", "bf16-weights"])
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_one_product_takes_the_place_of_three(kit, attending, mode, precision):
    products = {}
    for value in ("off", "on"):
        context = kit.run({"fused_qkv": value, "precision": precision}, layers(kit, attending), mode=mode)
        proof = FUSED_QKV.evidence(context, value)
        assert proof.took_effect is True, proof
        products[value] = int(proof.detail.split()[0])
    assert "2 joined 2 of 2 groups of layers" in proof.detail
    # 2 of 3 of each attention, and in training of the gradients of the layers' weights and inputs, but the first one's
    assert products["off"] - products["on"] == (4 if mode == "inference" else 4 + 4 + 2), products


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_outputs_parameters_and_updates_are_the_same(kit, attending, mode):
    found = []
    for value in ("off", "on"):
        context = kit.prepare({"fused_qkv": value}, layers(kit, attending), mode=mode)
        for _ in range(3):
            kit.step(context)
        with torch.no_grad():
            output = context.model(context.batches[0][0])
        found.append((output, {name: each.detach() for name, each in context.model.named_parameters()}))
        state = list(context.model.state_dict())
    torch.testing.assert_close(found[0][0], found[1][0])
    assert list(found[0][1]) == list(found[1][1]) == state
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-6)


def test_what_is_written_to_a_parameter_counts(kit, attending):
    context = kit.prepare({"fused_qkv": "on"}, layers(kit, attending))
    plain = kit.prepare({"fused_qkv": "off"}, layers(kit, attending))
    with torch.no_grad():
        for each in (context, plain):
            each.model.get_parameter("layers.0.to_k.weight").fill_(0.25)
        x = context.batches[0][0]
        torch.testing.assert_close(context.model(x), plain.model(x))


def test_gradients_in_inference_reach_the_parameters(kit, attending):
    context = kit.prepare({"fused_qkv": "on"}, layers(kit, attending))
    context.model(context.batches[0][0]).sum().backward()
    assert context.model.get_parameter("layers.0.to_v.weight").grad.abs().sum() > 0


class Cross(nn.Module):
    """An attention to half of its input, another one whose layers have different inputs, and biases."""

    def __init__(self, attention, odd: bool = False) -> None:
        super().__init__()
        self.cross, self.odd, self.head = attention(), attention() if odd else None, nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.cross(x, x[:, ::2])
        if self.odd is not None:
            x = self.odd.to_q(x + 1) + self.odd.to_k(x) * self.odd.to_v(x * 2)
        return self.head(x.mean(1))


def described(kit, work):
    from gpubench.workloads.describe import describe
    from gpubench.workloads.loader import Loaded

    return describe(Loaded(workload=work, reference="w", size="default", parameters={}, source_hash=None), "inference")


def test_of_a_cross_attention_key_and_value_are_joined(kit, attending):
    work = kit.workload(lambda: Cross(attending.Attention, odd=True), inputs=attending.tokens)
    facts = described(kit, work)
    assert facts.projections == [["cross.to_k", "cross.to_v"]]
    context = kit.run({"fused_qkv": "on"}, work, facts=facts)
    proof = FUSED_QKV.evidence(context, "on")
    assert proof.took_effect is True, proof
    assert "1 joined 1 of 1 group of layers" in proof.detail
    plain = kit.prepare({"fused_qkv": "off"}, work)
    x = context.batches[0][0]
    torch.testing.assert_close(context.model(x), plain.model(x))


def test_different_inputs_that_nobody_saw_are_computed_apart_and_told(kit, attending):
    work = kit.workload(lambda: Cross(attending.Attention, odd=True), inputs=attending.tokens)
    context = kit.run({"fused_qkv": "on"}, work)  # by the layers' names alone
    proof = FUSED_QKV.evidence(context, "on")
    assert proof.took_effect is False
    assert proof.detail.endswith(
        "and the others were called with different inputs, so that each is computed for itself"
    )
    plain = kit.prepare({"fused_qkv": "off"}, work)
    x = context.batches[0][0]
    torch.testing.assert_close(context.model(x), plain.model(x))


def test_an_input_that_is_changed_between_the_calls_is_another(kit, attending):
    class Shifting(attending.Attention):
        def forward(self, x):
            query = self.to_q(x)
            x = x.clone() if x.requires_grad else x
            x += 1
            return query + self.to_k(x) * self.to_v(x)

    def build():
        return nn.Sequential(nn.Identity(), Shifting(), nn.Flatten(), nn.Linear(96, 3))

    facts = described(kit, kit.workload(build, inputs=attending.tokens))
    assert facts.projections == [["1.to_k", "1.to_v"]]


def test_an_apply_that_does_nothing_is_caught(kit, attending):
    proof = FUSED_QKV.evidence(kit.run({"fused_qkv": "on"}, layers(kit, attending), replace=IDLE), "on")
    assert proof.took_effect is False
    assert proof.detail.endswith("; no layers are joined")


def test_a_step_without_the_products_is_caught(kit, attending):
    context = kit.prepare({"fused_qkv": "on"}, layers(kit, attending))
    context.trace = kit.trace(["aten::addmm", "aten::addmm"])
    assert FUSED_QKV.evidence(context, "on").took_effect is False
    context.trace = kit.trace(["aten::copy_"], ["some kernel"], graph=True)
    assert FUSED_QKV.evidence(context, "on").took_effect is True


@pytest.mark.parametrize("kind", ["shared", "own forward", "another class"])
def test_layers_that_are_more_than_linear_stay_as_they_are(kit, attending, kind):
    class Other(nn.Linear):
        pass

    def build():
        model = attending.Layers()
        first = model.layers[0]
        if kind == "shared":
            first.to_q.weight = model.layers[1].to_out.weight
        elif kind == "own forward":
            first.to_q.forward = lambda x: nn.functional.linear(x, first.to_q.weight)
        else:
            first.to_q = Other(16, 16, bias=False)
        return model

    context = kit.run({"fused_qkv": "on"}, kit.workload(build, inputs=attending.tokens))
    proof = FUSED_QKV.evidence(context, "on")
    assert proof.took_effect is True
    assert "1 joined 1 of 1 group" in proof.detail or "2 joined 2 of 2 groups" in proof.detail
    plain = kit.prepare({"fused_qkv": "off"}, kit.workload(build, inputs=attending.tokens))
    x = context.batches[0][0]
    torch.testing.assert_close(context.model(x), plain.model(x))


def test_it_applies_to_separate_layers(kit):
    assert FUSED_QKV.applies(kit.scope(projections=[["to_q", "to_k", "to_v"]])) is None
    assert FUSED_QKV.applies(kit.scope()) == (
        "workload net has no separate query, key and value layers that have one input"
    )


def test_the_printed_lines_join(attending):
    model = attending.Layers().eval()
    x = torch.randn(2, 6, 16)
    expected = model(x)
    lines = FUSED_QKV.usage("on", None).replace('# ("layers', '("layers').replace(".attention", "")
    names = {"torch": torch, "model": model}
    exec(lines, names)
    assert len(names["joined"]) == 1
    assert type(model.layers[0].to_q).__name__ == "JoinedLayer"
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)


@pytest.mark.slow
def test_compiled_training_joins(kit, attending):
    context = kit.run({"fused_qkv": "on", "compile": "default"}, layers(kit, attending), mode="training")
    proof = FUSED_QKV.evidence(context, "on")
    assert proof.took_effect is True, proof
