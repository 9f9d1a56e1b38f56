"""The modes in which a build leaves its parts, and what a process may set only once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from gpubench.workloads.building import build_model, set_mode
from gpubench.workloads.workload import Workload


class Frozen(nn.Module):
    """A backbone and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.head = nn.Sequential(nn.Linear(4, 2), nn.Dropout())


def fresh() -> Frozen:
    return Frozen()


def evaluated() -> Frozen:
    return Frozen().eval()


def frozen() -> Frozen:
    model = Frozen()
    model.backbone.eval().requires_grad_(False)
    return model


def sampling() -> Frozen:
    model = Frozen().eval()
    model.head[1].train()
    return model


def modes(model: nn.Module) -> tuple[bool, bool, bool]:
    return model.training, model.backbone[1].training, model.head[1].training


@pytest.mark.parametrize(
    ("build", "training", "inference"),
    [
        (fresh, (True, True, True), (False, False, False)),
        (evaluated, (True, True, True), (False, False, False)),  # as `from_pretrained` returns it
        (frozen, (True, False, True), (False, False, False)),
        (sampling, (False, False, True), (False, False, True)),
    ],
)
def test_what_the_build_has_set_for_a_part_is_kept(
    build: Callable[[], Frozen], training: tuple[bool, ...], inference: tuple[bool, ...]
) -> None:
    trained, inferred = build(), build()
    notes = set_mode(trained, "training"), set_mode(inferred, "inference")
    assert modes(trained) == training
    assert modes(inferred) == inference
    assert (bool(notes[0]), bool(notes[1])) == (build in (frozen, sampling), build is sampling)
    assert set_mode(trained, "training") == notes[0]  # nothing changes the second time
    assert modes(trained) == training
    assert trained.backbone[0].weight.requires_grad is (build is not frozen)


def test_the_note_names_the_outermost_parts() -> None:
    assert set_mode(frozen(), "training") == (
        "The build of the workload leaves parts of the model in evaluation mode (backbone), and so they are measured."
    )
    assert "in training mode (head.1)" in set_mode(sampling(), "inference")


def test_a_model_that_torch_compile_returned_has_the_mode_of_what_it_wraps() -> None:
    model = torch.compile(Frozen())
    model._orig_mod.eval()
    assert set_mode(model, "training") == ""
    assert model._orig_mod.training


def test_a_model_may_keep_its_own_parts_fixed_in_train() -> None:
    class Fixed(Frozen):
        def train(self, mode: bool = True) -> Fixed:
            super().train(mode)
            self.backbone.eval()
            return self

    model = Fixed()
    set_mode(model, "training")
    assert modes(model) == (True, False, True)


def test_a_build_that_sets_inter_operator_threads_can_be_built_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = [1]

    def set_once(count: int) -> None:
        if len(counts) > 1:
            raise RuntimeError("cannot set number of interop threads after parallel work has started")
        counts.append(count)

    monkeypatch.setattr(torch, "set_num_interop_threads", set_once)
    monkeypatch.setattr(torch, "get_num_interop_threads", lambda: counts[-1])

    def build() -> nn.Module:
        torch.set_num_interop_threads(4)
        return nn.Linear(2, 2)

    workload = Workload(name="w", item="row", batch_size=1, build=build, inputs=lambda n, g: (torch.randn(n, 2),))
    assert isinstance(build_model(workload), nn.Linear)
    assert isinstance(build_model(workload), nn.Linear)
    assert torch.set_num_interop_threads is set_once
