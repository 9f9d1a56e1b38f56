from __future__ import annotations

import torch
from torch import nn

from gpubench.workloads.blocks import blocks
from gpubench.workloads.describe import describe
from gpubench.workloads.loader import load


class Layer(nn.Module):
    def __init__(self, depth: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.inner = nn.ModuleList(Layer() for _ in range(depth))


def test_blocks_are_the_outermost_of_a_kind_in_lists() -> None:
    model = nn.ModuleDict({
        "layers": nn.ModuleList([Layer(2), Layer(2)]),
        "more": nn.Sequential(Layer(), nn.Linear(2, 2), nn.ReLU()),
        "head": Layer(),
    })  # fmt: skip
    assert list(blocks(model)) == ["layers.0", "layers.1", "more.0"]
    assert blocks(model)["layers.1"] is model["layers"][1]


def test_one_of_its_kind_is_no_block_and_neither_is_a_layer() -> None:
    assert blocks(nn.Sequential(Layer(), nn.Linear(2, 2), nn.Linear(2, 2))) == {}


def test_compiled_blocks_have_their_own_names() -> None:
    assert list(blocks(nn.Sequential(*(torch.compile(Layer()) for _ in range(2))))) == ["0", "1"]


def test_they_are_facts_of_a_workload() -> None:
    facts = describe(load("gpt", "tiny"), "inference")
    assert facts.blocks == len(blocks(load("gpt", "tiny").workload.build())) > 1
    assert facts.modules == {"Embedding": 2, "LayerNorm": 2 * facts.blocks + 1, "Linear": 4 * facts.blocks}
    assert {"blocks", "blocks.*", "blocks.*.attention.project"} <= set(facts.parts)
    assert len(facts.parts) == len(set(facts.parts)) < 20  # each once, however many blocks there are
