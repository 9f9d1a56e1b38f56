from __future__ import annotations

import dataclasses
import functools
import importlib.util
import sys
from types import ModuleType

import pytest
import torch
from torch.nn import functional as F

from gpubench.toggles.attention.xformers_attention import XFORMERS_ATTENTION

whole = functools.partial(F.scaled_dot_product_attention)
OURS = "aten::_scaled_dot_product_flash_attention"


@pytest.fixture
def calls(monkeypatch):
    """The package xformers, made up: its function computes by torch's, in its own layout. What it was called with."""
    made, found = ModuleType("xformers.ops"), []

    class LowerTriangularMask:
        pass

    def memory_efficient_attention(query, key, value, attn_bias=None, p=0.0, scale=None):
        found.append(tuple(query.shape))
        parts = [each.transpose(1, 2) for each in (query, key, value)]
        causal = isinstance(attn_bias, LowerTriangularMask)
        return whole(*parts, None, p, causal, scale=scale).transpose(1, 2)

    made.LowerTriangularMask, made.memory_efficient_attention = LowerTriangularMask, memory_efficient_attention
    monkeypatch.setitem(sys.modules, "xformers", ModuleType("xformers"))
    monkeypatch.setitem(sys.modules, "xformers.ops", made)
    return found


def function(everywhere: bool = True):
    """What the printed lines put in torch's place; `everywhere`: as if the tensors here were on a GPU."""
    names = {"torch": torch}
    lines = XFORMERS_ATTENTION.usage("on", None)
    exec(lines.replace("x.is_cuda", "True") if everywhere else lines, names)
    return names["xformers_attention"]


@pytest.mark.parametrize(
    ("length", "keys", "settings", "theirs"),
    [
        (5, 7, {}, 1),
        (5, 5, {"is_causal": True}, 1),
        (5, 7, {"is_causal": True}, 0),
        (5, 7, {"scale": 0.3}, 1),
        (5, 7, {"attn_mask": torch.ones(5, 7, dtype=torch.bool).tril(2)}, 0),
    ],
)
def test_it_gives_what_torch_gives(calls, length, keys, settings, theirs):
    query, key, value = torch.randn(2, 4, length, 8), torch.randn(2, 4, keys, 8), torch.randn(2, 4, keys, 8)
    torch.testing.assert_close(function()(query, key, value, **settings), whole(query, key, value, **settings))
    assert calls == [(2, length, 4, 8)] * theirs


@pytest.mark.parametrize(
    ("shape", "dtype"), [((4, 5, 8), torch.float), ((2, 4, 5, 6), torch.float), ((2, 4, 5, 8), torch.double)]
)
def test_what_it_does_not_take_is_torchs(calls, shape, dtype):
    x = torch.randn(shape, dtype=dtype)
    torch.testing.assert_close(function()(x, x, x), whole(x, x, x))
    assert calls == []


def test_grouped_queries_are_torchs(calls):
    query, key = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8)
    expected = whole(query, key, key, enable_gqa=True)
    torch.testing.assert_close(function()(query, key, key, enable_gqa=True), expected)
    assert calls == []


def test_on_a_cpu_every_call_is_torchs_and_the_evidence_says_so(kit, attending, calls):
    context = kit.run({"xformers_attention": "on"}, kit.workload(attending.Layers, inputs=attending.tokens))
    proof = XFORMERS_ATTENTION.evidence(context, "on")
    assert calls == []
    assert (proof.took_effect, proof.detail) == (False, "0 attentions of xFormers and 2 of torch ran in the step")


@pytest.mark.parametrize(
    ("operators", "took_effect"),
    [
        (["xformers_flash::flash_fwd", "xformers_flash::flash_fwd"], True),
        (["aten::_efficient_attention_forward"], True),  # below no function of torch's
        (["xformers_flash::flash_fwd", "xformers_flash::flash_fwd", OURS], True),
        (["xformers_flash::flash_fwd", OURS, OURS], False),
        ([OURS, f"{OURS}_backward"], False),
        (["aten::mm"], False),
    ],
)
def test_what_ran_on_a_gpu_tells(kit, attending, calls, operators, took_effect):
    context = kit.prepare({"xformers_attention": "on"}, kit.workload(attending.Layers, inputs=attending.tokens))
    context.device, context.trace = torch.device("cuda"), kit.trace(operators, ["some kernel"])
    assert XFORMERS_ATTENTION.evidence(context, "on").took_effect is took_effect
    assert XFORMERS_ATTENTION.evidence(context, "off").took_effect is True


def test_what_torchs_function_calls_is_torchs(kit, attending, calls):
    context = kit.prepare({"xformers_attention": "on"}, kit.workload(attending.Layers, inputs=attending.tokens))
    trace = kit.trace([OURS, "aten::_flash_attention_forward"])
    inside = dataclasses.replace(trace.operators[1], depth=1)
    context.trace = dataclasses.replace(trace, operators=(trace.operators[0], inside))
    proof = XFORMERS_ATTENTION.evidence(context, "on")
    assert proof.detail == "0 attentions of xFormers and 1 of torch ran in the step"


def test_an_apply_that_does_nothing_is_caught(kit, attending):
    context = kit.prepare({"xformers_attention": "off"}, kit.workload(attending.Layers, inputs=attending.tokens))
    context.trace = kit.trace(["xformers_flash::flash_fwd"])
    proof = XFORMERS_ATTENTION.evidence(context, "on")
    assert proof.took_effect is False
    assert proof.detail.endswith("nothing replaces torch's")


@pytest.mark.parametrize(("kernels", "took_effect"), [(["flash_fwd_kernel"], None), (["sgemm"], False)])
def test_in_a_cuda_graph_kernels_do_not_tell_whose_they_are(kit, attending, calls, kernels, took_effect):
    context = kit.prepare({"xformers_attention": "on"}, kit.workload(attending.Layers, inputs=attending.tokens))
    context.device, context.trace = torch.device("cuda"), kit.trace([], kernels, graph=True)
    assert XFORMERS_ATTENTION.evidence(context, "on").took_effect is took_effect


def test_what_cannot_run_has_its_sentence(kit, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert XFORMERS_ATTENTION.unmet(kit.scope(kit.AMPERE), "on") == (
        "needs the package xformers, which is not installed (pip install xformers)"
    )
    assert XFORMERS_ATTENTION.unmet(kit.scope(), "on") == "needs a CUDA device, this is A CPU"
    assert XFORMERS_ATTENTION.unmet(kit.scope(), "off") is None
    assert XFORMERS_ATTENTION.applies(kit.scope()) == "workload net has no attention"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert XFORMERS_ATTENTION.unmet(kit.scope(kit.AMPERE), "on") is None


def test_another_choice_of_torchs_backend_is_idle_beside_it(kit):
    from gpubench.toggles import get

    beside = {"xformers_attention": "on", "precision": "bf16-autocast"}
    assert get("sdpa_backend").unmet(kit.scope(kit.AMPERE), "flash", beside) == (
        "does nothing beside xformers_attention=on; only auto is allowed there"
    )
