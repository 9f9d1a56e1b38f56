from __future__ import annotations

import dataclasses
import functools
import sys
from types import FunctionType, ModuleType

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gpubench.toggles.attention.attention_slices import ATTENTION_SLICES
from gpubench.toggles.toggle import in_force

IDLE = {"attention_slices": dataclasses.replace(ATTENTION_SLICES, apply=in_force)}
whole = functools.partial(F.scaled_dot_product_attention)  # which is in no module's variable, so that it stays


def sliced(value):
    """The function that the printed lines put in torch's place, and the list of what it calls torch's with."""
    calls = []

    def recorded(query, key, value, *others, **named):
        calls.append((query.shape, key.shape))
        return whole(query, key, value, *others, **named)

    names = {"torch": torch}
    exec(ATTENTION_SLICES.usage(value, None), names)
    names["whole_attention"] = recorded
    assert F.scaled_dot_product_attention is names["sliced_attention"]
    return names["sliced_attention"], calls


def parts(*shapes):
    chance = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=chance) for shape in shapes]


@pytest.mark.parametrize("value", [2, 4, 8])
@pytest.mark.parametrize(
    ("query", "key", "settings", "at_most"),
    [
        ((2, 8, 5, 4), (2, 8, 7, 4), {}, 8),
        ((2, 6, 5, 4), (2, 6, 5, 4), {"is_causal": True}, 6),  # no multiple of the slices
        ((4, 1, 5, 4), (4, 1, 7, 4), {"scale": 0.3}, 4),  # one head: slices of the batch
        ((3, 3, 5, 4), (3, 3, 7, 4), {}, 6),
        ((1, 1, 5, 4), (1, 1, 7, 4), {}, 1),
        ((8, 5, 4), (8, 7, 4), {}, 8),
        ((5, 4), (7, 4), {}, 1),
        ((1, 4, 5, 4), (3, 4, 7, 4), {}, 8),  # a query that is broadcast
        ((2, 8, 5, 4), (2, 2, 7, 4), {"enable_gqa": True}, 4),
        ((2, 6, 5, 4), (2, 3, 7, 4), {"enable_gqa": True}, 6),  # groups that the slices do not divide
        ((2, 6, 5, 4), (2, 1, 7, 4), {"enable_gqa": True}, 6),  # one head of keys for all
    ],
)
def test_slices_give_what_the_whole_gives(value, query, key, settings, at_most):
    function, calls = sliced(value)
    query, key, states = parts(query, key, key)
    torch.testing.assert_close(function(query, key, states, **settings), whole(query, key, states, **settings))
    assert 1 <= len(calls) <= min(value, at_most)
    assert at_most < 2 or len(calls) > 1


@pytest.mark.parametrize(
    "shape", [(5, 7), (1, 5, 7), (4, 5, 7), (2, 1, 5, 7), (1, 4, 5, 7), (2, 4, 5, 7), (2, 1, 1, 7), (2, 4, 1, 7)]
)
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_masks_are_cut_where_they_are_not_broadcast(shape, kind):
    function, calls = sliced(4)
    query, key, value, mask = parts((2, 4, 5, 4), (2, 4, 7, 4), (2, 4, 7, 4), shape)
    mask = mask if kind == "float" else mask > -1
    torch.testing.assert_close(function(query, key, value, mask), whole(query, key, value, mask))
    assert len(calls) == 4


def test_a_mask_beside_grouped_queries():
    function, _ = sliced(2)
    query, key, value, mask = parts((2, 4, 5, 4), (2, 2, 5, 4), (2, 2, 5, 4), (2, 4, 5, 5))
    torch.testing.assert_close(
        function(query, key, value, attn_mask=mask, enable_gqa=True), whole(query, key, value, mask, enable_gqa=True)
    )


def test_gradients_are_the_same_and_dropout_drops():
    function, _ = sliced(4)
    found = []
    for attention in (function, whole):
        tensors = [each.requires_grad_() for each in parts((2, 4, 5, 4), (2, 4, 5, 4), (2, 4, 5, 4))]
        attention(*tensors, None, 0.0, True).square().sum().backward()
        found.append([each.grad for each in tensors])
    torch.testing.assert_close(*found)
    ones = torch.ones(2, 4, 64, 8)
    dropped = function(ones, ones, ones, dropout_p=0.5)
    assert not torch.equal(dropped, whole(ones, ones, ones))
    assert 0.9 < float(dropped.mean()) < 1.1


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize(("value", "ran"), [("off", 2), (2, 4), (4, 8), (8, 16)])
def test_the_step_runs_slices(kit, attending, value, ran, mode):
    context = kit.run({"attention_slices": value}, kit.workload(attending.Layers, inputs=attending.tokens), mode=mode)
    proof = ATTENTION_SLICES.evidence(context, value)
    assert proof.took_effect is True, proof
    assert proof.detail.startswith(f"attention ran {ran} times in the step")
    assert value == "off" or proof.detail.endswith(f"2 calls of scaled_dot_product_attention made {ran} slices")


def test_an_apply_that_does_nothing_is_caught(kit, attending):
    work = kit.workload(attending.Layers, inputs=attending.tokens)
    proof = ATTENTION_SLICES.evidence(kit.run({"attention_slices": 2}, work, replace=IDLE), 2)
    assert (proof.took_effect, proof.detail) == (False, "attention ran 2 times in the step; nothing slices it")


def test_a_step_that_kept_torchs_function_is_caught(kit, attending):
    class Kept(attending.Attention):
        def forward(self, x):
            return whole(self.to_q(x), self.to_k(x), self.to_v(x))

    width = attending.LENGTH * attending.WIDTH
    work = kit.workload(lambda: nn.Sequential(Kept(), nn.Flatten(), nn.Linear(width, 3)), inputs=attending.tokens)
    proof = ATTENTION_SLICES.evidence(kit.run({"attention_slices": 2}, work), 2)
    assert proof.took_effect is False, proof
    assert "0 calls of scaled_dot_product_attention made 0 slices" in proof.detail


def test_one_head_of_one_item_cannot_be_sliced(kit, attending):
    work = kit.workload(lambda: attending.Layers(heads=1), inputs=attending.tokens, batch_size=1)
    proof = ATTENTION_SLICES.evidence(kit.run({"attention_slices": 2}, work), 2)
    assert proof.took_effect is False
    assert "2 calls of scaled_dot_product_attention made 2 slices" in proof.detail


def test_a_function_that_was_imported_by_name_is_replaced_too(kit, attending, monkeypatch):
    module = ModuleType("their_attention")
    module.scaled_dot_product_attention = F.scaled_dot_product_attention
    monkeypatch.setitem(sys.modules, "their_attention", module)
    kit.prepare({"attention_slices": 2}, kit.workload(attending.Layers, inputs=attending.tokens))
    assert module.scaled_dot_product_attention is F.scaled_dot_product_attention
    assert isinstance(F.scaled_dot_product_attention, FunctionType)


def test_where_operators_are_hidden_the_pass_speaks(kit, attending):
    context = kit.prepare({"attention_slices": 2}, kit.workload(attending.Layers, inputs=attending.tokens))
    context.trace = kit.trace(["aten::copy_"], ["some kernel"], graph=True)
    assert ATTENTION_SLICES.evidence(context, 2).took_effect is True
    context.trace = kit.trace(["aten::copy_"])  # nothing hides it
    assert ATTENTION_SLICES.evidence(context, 2).took_effect is False


def test_it_applies_to_attention(kit):
    assert ATTENTION_SLICES.applies(kit.scope()) == "workload net has no attention"
    assert [ATTENTION_SLICES.magnitude(value) for value in ATTENTION_SLICES.values] == [1, 2, 4, 8]


@pytest.mark.slow
def test_everything_at_once_in_compiled_code(kit, attending):
    from gpubench.toggles import get

    configuration = {
        "sdpa_backend": "math",
        "attention_slices": 2,
        "fused_qkv": "on",
        "grad_mode": "inference_mode",
        "compile": "default",
    }
    work = kit.workload(attending.Layers, inputs=attending.tokens)
    context = kit.run(configuration, work)
    proofs = {name: get(name).evidence(context, value) for name, value in configuration.items()}
    assert all(proof.took_effect is True for proof in proofs.values()), proofs
    assert proofs["compile"].graph_breaks == proofs["compile"].recompiles == 0
    with torch.inference_mode():
        plain = kit.prepare({}, work)
        expected = plain.model(context.batches[0][0])
        torch.testing.assert_close(context.step.forward(context.batches[0]), expected)
