from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gpubench.measure.trace import Operator, Trace
from gpubench.toggles import dynamo_records as records
from gpubench.toggles.memory.checkpointing import CHECKPOINTING
from gpubench.toggles.printed import run_lines
from gpubench.toggles.toggle import in_force
from gpubench.workloads.describe import compile_targets
from gpubench.workloads.loader import load

VALUES = ["off", "every-block", "every-second-block", "selective"]


class Block(nn.Module):
    """[B, T, 8] -> [B, T, 8], with attention, norms and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.project, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.widen, self.narrow, self.drop = nn.Linear(8, 32), nn.Linear(32, 8), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.project(self.norm(x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.drop(self.narrow(nn.functional.gelu(self.widen(x))))


class Stack(nn.Module):
    """Images [B, 4, H, W] -> [B, 3]."""

    def __init__(self, itself: bool = False, blocks: int = 4) -> None:
        super().__init__()
        self.itself = itself
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x.flatten(2).transpose(1, 2))
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.itself else block(x)
        return self.last(x.mean(1))


def saved_numbers(context: Any) -> int:
    """How many numbers autograd keeps of one forward pass."""
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter):
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        context.step.forward(context.batches[0])
    return sum(found.values())


def test_the_same_is_learned_with_less_kept(kit):
    kept, learned = {}, {}
    for value in VALUES:
        context = kit.prepare({"checkpointing": value}, kit.workload(Stack), mode="training")
        kept[value] = saved_numbers(context)
        torch.manual_seed(3)  # of dropout
        kit.step(context)
        learned[value] = torch.cat([weight.flatten() for weight in context.model.parameters()])
    for value in VALUES[1:]:
        torch.testing.assert_close(learned[value], learned["off"])
    assert kept["every-block"] < kept["every-second-block"] < kept["off"]
    assert kept["selective"] == kept["every-block"]  # but for the results that are kept aside


@pytest.mark.parametrize("precision", ["fp32", "bf16-autocast"])
@pytest.mark.parametrize(("value", "nodes"), [("off", 0), ("every-block", 4), ("every-second-block", 2)])
def test_blocks_that_ran_again_are_seen(kit, value, nodes, precision):
    configuration = {"checkpointing": value, "precision": precision}
    context = kit.run(configuration, kit.workload(Stack), mode="training")
    proof = CHECKPOINTING.evidence(context, value)
    assert proof.took_effect is True, proof.detail
    assert proof.detail.startswith(f"forward operators ran again in {nodes} node")


def test_selective_keeps_some_results(kit):
    context = kit.run({"checkpointing": "selective"}, kit.workload(Stack), mode="training")
    proof = CHECKPOINTING.evidence(context, "selective")
    assert proof.took_effect is True, proof.detail
    assert "results of matrix products, convolutions and attentions had been kept" in proof.detail
    assert "; 0 results" not in proof.detail


@pytest.mark.parametrize("value", VALUES[1:])
def test_an_apply_that_does_nothing_is_caught(kit, value):
    idle = dataclasses.replace(CHECKPOINTING, apply=in_force)
    work = kit.workload(Stack)
    context = kit.run({"checkpointing": value}, work, mode="training", replace={"checkpointing": idle})
    proof = CHECKPOINTING.evidence(context, value)
    assert proof.took_effect is False, proof.detail


def test_selective_that_keeps_nothing_is_caught(kit):
    every = dataclasses.replace(CHECKPOINTING, apply=lambda context, _: CHECKPOINTING.apply(context, "every-block"))
    work = kit.workload(Stack)
    context = kit.run({"checkpointing": "selective"}, work, mode="training", replace={"checkpointing": every})
    assert CHECKPOINTING.evidence(context, "selective").took_effect is False


def test_a_model_that_does_it_itself_is_no_false_baseline(kit):
    context = kit.run({"checkpointing": "off"}, kit.workload(lambda: Stack(itself=True)), mode="training")
    proof = CHECKPOINTING.evidence(context, "off")
    assert proof.took_effect is True
    assert proof.detail.endswith("4 nodes of the backward pass: the model's own code does that")


def test_frozen_blocks_are_left_alone(kit):
    def build() -> nn.Module:
        model = Stack()
        model.blocks[0].requires_grad_(False)
        model.first.requires_grad_(False)
        return model

    context = kit.run({"checkpointing": "every-block"}, kit.workload(build), mode="training")
    assert "forward" not in vars(context.model.blocks[0])
    assert "3 blocks asked for it" in CHECKPOINTING.evidence(context, "every-block").detail


def test_training_with_blocks_alone_has_it(kit):
    assert CHECKPOINTING.applies(kit.scope(blocks=4)) == "inference keeps no activations"
    assert CHECKPOINTING.applies(kit.scope(mode="training")) == "workload net has no repeated blocks"
    assert CHECKPOINTING.applies(kit.scope(mode="training", blocks=4)) is None


@pytest.mark.parametrize("name", ["BatchNorm2d", "_SpectralNorm"])
def test_layers_that_change_their_state_in_the_forward_pass_are_no_ones_to_run_twice(kit, name):
    scope = kit.scope(mode="training", blocks=4, modules={name: 4})
    for value in VALUES[1:]:
        reason = CHECKPOINTING.unmet(scope, value)
        assert reason == f"would change twice in each step what {name} keeps from step to step"
    assert CHECKPOINTING.unmet(scope, "off") is None


@pytest.mark.parametrize("value", VALUES[1:])
def test_the_printed_lines_do_it(kit, value):
    model = Stack().train()
    targets = compile_targets(model, [f"blocks.{index}" for index in range(4)])
    lines = CHECKPOINTING.usage(value, kit.scope(mode="training", blocks=4, block_targets=targets))
    run_lines(lines, model=model)
    wrapped = ["forward" in vars(block) for block in model.blocks]
    assert wrapped == ([True, False] * 2 if value == "every-second-block" else [True] * 4)
    model(torch.randn(2, 4, 3, 3)).sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


WORKLOADS = {"vit_mae": "model", "dit": "transformer", "diffusion": "unet"}


@pytest.mark.parametrize("name", WORKLOADS)
def test_bundled_models_compute_the_same_and_keep_less(kit, name):
    results, kept = [], []
    for value in ("off", "every-block"):
        context = kit.prepare({"checkpointing": value}, load(name, "tiny").workload, mode="training")
        kept.append(saved_numbers(context))
        loss = context.step.forward(context.batches[0])
        loss.backward()
        gradients = [each.grad.flatten() for each in context.model.parameters() if each.grad is not None]
        results.append((loss.detach(), torch.cat(gradients)))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)
    assert kept[1] < 0.7 * kept[0]


def backward(*called: str) -> Trace:
    node = Operator(name="CompiledFunctionBackward", dtypes=(), shapes=(), strides=())
    inside = [Operator(name=name, dtypes=(), shapes=(), strides=(), depth=1) for name in called]
    return Trace(operators=(node, *inside), kernels=(), names=frozenset({"Torch-Compiled Region"}))


@pytest.mark.parametrize(
    ("called", "regions", "took_effect", "words"),
    [
        (("aten::convolution",), 4, True, "dynamo has told the compiler of 4 such regions"),
        (("aten::mm", "aten::addmm"), 4, None, "its kernels do not tell"),
        (("aten::_scaled_dot_product_flash_attention_backward",), 4, None, "its kernels do not tell"),
        (("aten::mm",), 0, False, "ran again in 0 nodes"),
    ],
)
def test_in_compiled_code_it_is_told_as_far_as_it_can_be(kit, monkeypatch, called, regions, took_effect, words):
    context = kit.prepare({"checkpointing": "every-block"}, kit.workload(Stack), mode="training")
    graphs = [records.Graph("inductor", "Stack.forward", 0, None, False, regions, 9)]
    monkeypatch.setattr(records, "graphs_of", lambda _: graphs)
    context.trace = backward(*called)
    proof = CHECKPOINTING.evidence(context, "every-block")
    assert proof.took_effect is took_effect, proof.detail
    assert words in proof.detail


def test_a_cuda_graph_hides_it(kit):
    context = kit.prepare({"checkpointing": "every-block"}, kit.workload(Stack), mode="training")
    context.trace = kit.trace(["aten::mm"], graph=True)
    assert CHECKPOINTING.evidence(context, "every-block").took_effect is None


def test_without_a_trace_it_is_unknown(kit):
    context = kit.prepare({"checkpointing": "every-block"}, kit.workload(Stack), mode="training")
    context.trace_error = "no CUPTI"
    assert CHECKPOINTING.evidence(context, "every-block").took_effect is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "scope", "told"),
    [("every-block", "targets", True), ("every-block", "blocks", True), ("selective", "blocks", None)],
)
def test_beside_compiled_code_it_is_told_or_unknown(kit, value, scope, told):
    configuration = {"checkpointing": value, "compile": "default", "compile_scope": scope}
    context = kit.run(configuration, kit.workload(lambda: Stack(blocks=2)), mode="training")
    proof = CHECKPOINTING.evidence(context, value)
    assert proof.took_effect is told, proof.detail
