"""Facts of a workload, read from its model and inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from gpubench.errors import GpubenchError
from gpubench.hardware import probe
from gpubench.hardware.facts import Device
from gpubench.worker import once
from gpubench.worker.messages import Describe, WorkloadChoice
from gpubench.workloads.describe import describe
from gpubench.workloads.loader import Loaded, load
from gpubench.workloads.workload import Workload


def loaded(build: Callable[[], Any], **changes: Any) -> Loaded:
    fields = {
        "name": "mine",
        "item": "row",
        "batch_size": 2,
        "build": build,
        "inputs": lambda batch_size, generator: (torch.randn(batch_size, 4, generator=generator),),
    }
    return Loaded(
        workload=Workload(**(fields | changes)),
        reference="mine.py:make",
        size="default",
        parameters={},
        source_hash="x",
    )


def fails(case: Loaded, mode: Any = "inference", batch_size: int | None = None) -> str:
    with pytest.raises(GpubenchError) as caught:
        describe(case, mode, batch_size)
    return str(caught.value)


def test_vae() -> None:
    facts = describe(load("vae", "tiny", {"resolution": "64"}), "inference", 3)
    assert facts.input_shapes == [[3, 3, 64, 64], [3, 4, 8, 8]]
    assert (facts.convolution_dimensions, facts.attention, facts.batch_size) == ([2], True, 3)
    assert facts.parameters == {"task": "reconstruct", "resolution": 64}
    assert (facts.tile_sizes, facts.tile_multiple, facts.tile_overlap, facts.resolution) == ([16, 24], 8, 8, 64)
    assert facts.modes == ["inference", "training"]
    assert describe(load("vae", "tiny"), "training").tile_sizes == []  # only inference is tiled


def test_unet3d_and_resnet50() -> None:
    unet = describe(load("unet3d", "tiny"), "training")
    assert (unet.convolution_dimensions, unet.attention, unet.mode, unet.item) == ([3], False, "training", "patch")
    assert unet.input_shapes == [[2, 1, 8, 8, 8], [2, 8, 8, 8]]
    resnet = describe(load("resnet50", "base"), "inference", 1)
    assert (resnet.convolution_dimensions, resnet.parameter_count, resnet.size) == ([2], 25_557_032, "base")


def test_a_model_without_convolutions_and_with_attention() -> None:
    facts = describe(loaded(lambda: nn.TransformerEncoderLayer(4, 2, 8)), "inference")
    assert (facts.convolution_dimensions, facts.attention, facts.source_hash) == ([], True, "x")


def test_code_that_reads_values_is_built_on_the_cpu() -> None:
    def build() -> nn.Module:
        model = nn.Linear(4, 4)
        float(model.weight.detach().sum())  # fails on the meta device
        return model

    assert describe(loaded(build), "inference").parameter_count == 20


def test_describing_a_shared_parameter_counts_it_once() -> None:
    def build() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model[1].weight = model[0].weight
        return model

    assert describe(loaded(build), "inference").parameter_count == 24


def test_what_does_not_fit() -> None:
    linear = loaded(lambda: nn.Linear(4, 4))
    assert "Workload 'mine' cannot do training: it has no loss. Its modes: inference." in fails(linear, "training")
    assert "cannot do inference: it has no infer" in fails(
        loaded(lambda: nn.Linear(4, 4), infer=None, loss=lambda m, b: m(*b).sum())
    )
    assert "The batch size is 0." in fails(linear, batch_size=0)
    assert "returned an object of type int. It must return a torch.nn.Module." in fails(loaded(lambda: 3))
    assert "Building the model of mine.py:make failed: ZeroDivisionError" in fails(loaded(lambda: 1 / 0))
    assert "has lazy layers" in fails(loaded(lambda: nn.LazyLinear(4)))
    assert "has no submodule 'encoder', its compile target. Its own submodules: 0." in fails(
        loaded(lambda: nn.Sequential(nn.Linear(4, 4)), compile_targets=("encoder",))
    )


def test_inputs_that_do_not_fit() -> None:
    def with_inputs(make: Callable[..., Any]) -> str:
        return fails(loaded(lambda: nn.Linear(4, 4), inputs=make))

    assert "inputs of workload 'mine' are of type Tensor" in with_inputs(lambda b, g: torch.ones(b, 4))
    assert "They must be a tuple of at least one tensor." in with_inputs(lambda b, g: ())
    assert "has shape [1, 4] for a batch of 2. The first dimension" in with_inputs(lambda b, g: (torch.ones(1, 4),))
    assert "Making the inputs of mine.py:make failed: KeyError" in with_inputs(lambda b, g: {}["x"])


@pytest.mark.parametrize(
    ("card_gib", "limit_gib", "size"),
    [(79, None, "large"), (23, None, "base"), (5.8, None, "medium"), (79, 6, "medium")],
)
def test_auto_is_the_size_that_fits_the_card_or_the_limit(
    card_gib: float, limit_gib: int | None, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Device(kind="cuda", name="A card", index=0, total_memory_bytes=round(card_gib * 2**30))
    monkeypatch.setattr(probe, "probe_device", lambda _: card)
    choice = WorkloadChoice(reference="resnet50", size=None, parameters={}, mode=None)
    limit = None if limit_gib is None else limit_gib * 2**30
    assert once.describe(Describe(choice, "cuda:0", 1, limit)).workload.size == size
