"""The judge of benchmarks/zoo, on models of a few lines: it needs none of the zoo's libraries."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

ZOO = Path(__file__).resolve().parents[2] / "benchmarks" / "zoo"


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ZOO))
    return importlib.import_module("work")


@pytest.fixture
def differences(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ZOO))
    return importlib.import_module("differences")


def test_every_name_is_a_workload_of_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ZOO))
    models = importlib.import_module("models")
    for library, names in models.MODELS.items():
        tree = ast.parse((ZOO / f"{library}_models.py").read_text())
        defined = [
            each.name for each in tree.body if isinstance(each, ast.FunctionDef) and not each.name.startswith("_")
        ]
        assert sorted(defined) == sorted(names)


@pytest.mark.parametrize(
    ("model", "shape"),
    [(nn.LSTM(16, 16), (5, 2, 16)), (nn.Linear(16, 16), (2, 16)), (nn.Conv2d(4, 4, 3), (2, 4, 8, 8))],
    ids=["lstm", "linear", "convolution"],
)
def test_work_is_counted_in_the_dtype_it_ran_in(work: ModuleType, model: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    plain, cast = work.Work(), work.Work()
    with torch.no_grad(), plain:
        model(x)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), cast:
        model(x)
    assert plain.share_in(torch.float32) == 1
    assert cast.share_in(torch.bfloat16) == 1
    assert plain.by_dtype.total() == cast.by_dtype.total() > 0


def test_layout_is_counted_by_work_where_it_can_be_told(work: ModuleType) -> None:
    large, small = nn.Conv2d(8, 64, 3), nn.Conv2d(64, 1, 1)
    large.to(memory_format=torch.channels_last)
    with torch.no_grad(), work.Work() as one:
        small(large(torch.randn(2, 8, 9, 9)).contiguous())
    assert 0.9 < one.share_channels_last < 1
    with torch.no_grad(), work.Work() as other:
        nn.Conv2d(8, 8, 1)(torch.randn(2, 8, 1, 1))
    assert other.share_channels_last is None


def test_each_output_is_judged_by_itself(differences: ModuleType) -> None:
    boxes, scores = torch.full((9,), 500.0), torch.full((9,), 0.1)
    reference = differences.snapshot({"boxes": boxes, "scores": scores})
    outputs = differences.snapshot({"boxes": boxes, "scores": 2 * scores})
    assert differences.compare(outputs, reference, 0.06).outcome == "wrong"
    assert differences.compare(reference, reference, 0.06).outcome == "ok"


@pytest.mark.parametrize(
    ("one", "other", "outcome"),
    [
        (torch.zeros(3), torch.zeros(3), "unchecked"),
        (torch.zeros(0), torch.zeros(0), "unchecked"),
        (torch.ones(3), torch.zeros(3), "wrong"),
        (torch.tensor([1.0, -torch.inf]), torch.tensor([1.0, -torch.inf]), "ok"),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, -torch.inf]), "wrong"),
        (torch.tensor([torch.nan, 2.0]), torch.tensor([1.0, 2.0]), "wrong"),
        (torch.tensor([1.06]), torch.tensor([1.0]), "borderline"),
        (torch.arange(100) % 99, torch.arange(100), "ok"),
    ],
)
def test_what_cannot_be_checked_is_not_right(
    differences: ModuleType, one: torch.Tensor, other: torch.Tensor, outcome: str
) -> None:
    assert differences.compare({"output": one}, {"output": other}, 0.06).outcome == outcome


def test_detections_are_sets(differences: ModuleType) -> None:
    found = {
        "boxes": torch.tensor([[0.0, 0.0, 9.0, 9.0], [50.0, 50.0, 90.0, 90.0]]),
        "labels": torch.tensor([1, 2]),
        "scores": torch.tensor([0.51, 0.5]),
    }
    swapped = {name: tensor.flip(0) for name, tensor in found.items()}
    other = {**found, "labels": torch.tensor([2, 2])}
    compare = differences.compare
    assert compare([found], [found], 0.06).outcome == "ok"
    assert compare([swapped], [found], 0.06) == differences.Difference("ok", 0.0, "detections as sets", reordered=True)
    assert compare([other], [found], 0.06).outcome == "wrong"
