"""Two processes see by a few numbers whether they have the same model and inputs."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from gpubench.worker import fingerprint
from gpubench.worker.fingerprint import difference


def model(change: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.Embedding(5000, 64))
    made[2].weight.data.mul_(1 + change)
    return made


def batches() -> list[tuple[object, ...]]:
    return [(torch.arange(6).reshape(2, 3), {"mask": torch.tensor([True, False]), "name": "x"}, torch.empty(0))]


def test_the_same_is_the_same_after_it_went_through_a_file() -> None:
    first = fingerprint.of(model(), batches())
    assert list(first)[:2] == ["parameter 0.weight", "parameter 0.bias"]
    assert {"buffer 1.running_mean", "input 0 of batch 0", "input 1.mask of batch 0"} <= set(first)
    assert difference(json.loads(json.dumps(first)), fingerprint.of(model(), batches()), rounding=0.0) == ""


@pytest.mark.parametrize(("change", "name"), [(1e-6, ""), (1e-3, "parameter 2.weight")])
def test_rounding_is_no_difference(change: float, name: str) -> None:
    assert difference(fingerprint.of(model(), []), fingerprint.of(model(change), [])) == name


def test_other_places_of_the_same_values_and_other_numbers_of_them_are_seen() -> None:
    first = fingerprint.of(model(), [])
    shuffled = model()
    shuffled[2].weight.data = shuffled[2].weight.data.flip(0)
    assert difference(first, fingerprint.of(shuffled, [])) == "parameter 2.weight"
    assert difference(first, fingerprint.of(nn.Sequential(*model()[:2]), [])) == "parameter 2.weight"


def test_values_that_are_no_numbers_are_alike() -> None:
    batch = [(torch.tensor([float("nan"), float("inf"), 1.0]), torch.ones(2, dtype=torch.bfloat16))]
    first = fingerprint.of(nn.Identity(), batch)
    assert difference(json.loads(json.dumps(first)), first, rounding=0.0) == ""
    batch[0][0][2] = 2.0
    assert difference(first, fingerprint.of(nn.Identity(), batch)) == "input 0 of batch 0"


def test_what_has_no_values_of_its_own_is_left_out() -> None:
    sparse = torch.eye(3).to_sparse()
    assert fingerprint.of(nn.LazyLinear(3), [(sparse, None, torch.ones(2, device="meta"))]) == {}
