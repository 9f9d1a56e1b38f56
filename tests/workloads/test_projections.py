from __future__ import annotations

import torch
from torch import nn

from gpubench.workloads.describe import describe
from gpubench.workloads.loader import load
from gpubench.workloads.projections import Fed, projections


class Named(nn.Module):
    def __init__(
        self, names: tuple[str, str, str], query: int = 4, biases: tuple[bool, bool, bool] = (True,) * 3
    ) -> None:
        super().__init__()
        for name, width, bias in zip(names, (query, 4, 4), biases, strict=True):
            setattr(self, name, nn.Linear(width, 4, bias=bias))


def test_layers_are_found_by_their_names() -> None:
    every = (
        ("to_q", "to_k", "to_v"),
        ("q_proj", "k_proj", "v_proj"),
        ("query", "key", "value"),
        ("q", "k", "v"),
        ("wq", "wk", "wv"),
    )
    model = nn.ModuleList(Named(names) for names in every)
    assert projections(model) == [[f"{index}.{name}" for name in names] for index, names in enumerate(every)]
    assert projections(torch.compile(Named(every[0]))) == [list(every[0])]
    assert projections(Named(("first", "second", "third"))) == []


def test_what_cannot_be_one_product_is_left_out() -> None:
    names = ("q", "k", "v")
    assert projections(Named(names, query=3)) == [["k", "v"]]
    assert projections(Named(names, biases=(True, False, False))) == [["k", "v"]]
    assert projections(Named(names, biases=(True, True, False))) == []


def test_inputs_are_the_same_if_they_are_one_tensor_unchanged() -> None:
    fed, x = Fed([["q", "k", "v"], ["other.k", "other.v"], ["idle.k", "idle.v"]]), torch.zeros(2)
    for name in ("q", "k", "v", "other.k"):
        fed.call(name, [x])
    assert fed.with_one_input() == (("q", "k", "v"),)
    x += 1
    fed.call("other.v", [x])
    assert fed.with_one_input() == (("q", "k", "v"),)
    fed.call("q", [x])
    assert fed.with_one_input() == (("k", "v"),)


def test_they_are_facts_of_a_workload() -> None:
    vae = describe(load("vae", "tiny"), "inference")
    assert vae.projections
    assert all([name.rpartition(".")[2] for name in names] == ["query", "key", "value"] for names in vae.projections)
    assert describe(load("gpt", "tiny"), "inference").projections == []
