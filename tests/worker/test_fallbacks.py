"""A reference that does not fit into the device's memory is made in another way, and says in which."""

from __future__ import annotations

import contextlib
import gc
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gpubench.report.model import Protocol
from gpubench.worker import facts, once, reference
from gpubench.worker.fallbacks import Way, first_that_fits, ways
from gpubench.worker.messages import MakeReference, ReferenceMade, WorkloadChoice
from gpubench.workloads.workload import Batch, Workload
from gpubench.workloads.workload_facts import Mode

OFFLOADED = "GPUBENCH_TEST_OFFLOADED"  # set while activations go elsewhere
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


class Greedy(nn.Module):
    """Runs out of memory where what the backward pass needs stays on the device, unless there is much."""

    def __init__(self, roomy: bool) -> None:
        super().__init__()
        self.roomy, self.layer = roomy, nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.roomy and OFFLOADED not in os.environ:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        out: torch.Tensor = self.layer(x).relu()
        return out


def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    return model(batch[0]).square().mean()


def greedy(roomy: bool = False) -> Workload:
    return Workload(
        name="greedy", item="row", batch_size=4, build=lambda: Greedy(roomy), loss=loss,
        inputs=lambda count, generator: (torch.randn(count, 8, generator=generator),),
    )  # fmt: skip


def test_the_ways_take_less_and_less_of_a_gpu() -> None:
    assert [way.where for way in ways(CUDA, "training")] == [
        "on the same device",
        "on the same device, with activations kept in the host's memory",
        "on the CPU",
    ]
    assert [(way.where, way.device) for way in ways(CUDA, "inference")] == [
        ("on the same device", CUDA), ("on the CPU", CPU),
    ]  # fmt: skip
    assert [way.device for way in ways(CPU, "training")] == [CPU]


def test_only_memory_that_ran_out_leads_to_the_next_way() -> None:
    tried: list[str] = []

    def make(way: Way) -> None:
        tried.append(way.where)
        if way.where != "c":
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED" if way.where == "a" else "shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        first_that_fits([Way(name, CPU) for name in "abc"], make)
    assert tried == ["a", "b"]
    assert first_that_fits([Way(name, CPU) for name in "ac"], make).where == "c"
    with pytest.raises(RuntimeError, match="ALLOC_FAILED"):
        first_that_fits([Way("a", CPU)], make)


@contextlib.contextmanager
def told(way: Way) -> Iterator[None]:
    """What `way` enters, which the workload, a module of its own, sees in the environment."""
    os.environ[OFFLOADED] = "1"
    try:
        with way.enter():
            yield
    finally:
        del os.environ[OFFLOADED]


def made(folder: Path, monkeypatch: pytest.MonkeyPatch, roomy: bool) -> ReferenceMade:
    """The training reference of `greedy`, in ways as of a GPU but all on the CPU."""

    def on_cpu(_: torch.device, mode: Mode) -> list[Way]:
        plain, offloaded, last = ways(CUDA, mode)
        return [Way(plain.where, CPU), Way(offloaded.where, CPU, lambda: told(offloaded)), Way(last.where, CPU)]

    monkeypatch.setattr(once, "ways", on_cpu)
    choice = WorkloadChoice(
        reference=f"{__file__}:greedy", size=None, parameters={"roomy": str(roomy)}, mode="training"
    )
    request = MakeReference(
        choice=choice, device="cpu", configuration={"optimizer": "for-loop"}, protocol=Protocol(), folder=str(folder)
    )
    return once.make_reference(request)


def test_only_one_model_lives_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    living: list[weakref.ref[nn.Module]] = []
    most = 0

    def watched(*arguments: Any) -> Any:
        nonlocal most
        context = build(*arguments)
        living.append(weakref.ref(context.model))
        gc.collect()
        most = max(most, sum(each() is not None for each in living))
        return context

    build = once.build
    monkeypatch.setattr(once, "build", watched)
    made(tmp_path / "plain", monkeypatch, roomy=True)
    assert (len(living), most) == (3, 1)  # its steps, with other random numbers, and with other roundings


def test_activations_in_the_hosts_memory_change_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, offloaded = tmp_path / "plain", tmp_path / "offloaded"
    assert made(plain, monkeypatch, roomy=True).where == ""
    where = made(offloaded, monkeypatch, roomy=False).where
    assert where == "on the same device, with activations kept in the host's memory"
    update = reference.load_tensors(plain / "update")
    for name, other in reference.load_tensors(offloaded / "update").items():
        assert torch.equal(update[name], other)
    losses = [0.0] * Protocol().quality_steps

    def checked(folder: Path) -> str:
        compared = reference.Reference(folder, {}, facts.load(folder).built)
        return compared.check_training(losses, update, 0.1).reference

    assert checked(plain) == reference.WHAT
    assert checked(offloaded) == (f"{reference.MODEL}, on the same device, with activations kept in the host's memory")
