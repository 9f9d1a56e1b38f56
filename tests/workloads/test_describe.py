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


def test_a_compile_target_at_two_places_may_be_named_by_either() -> None:
    def build() -> nn.Module:
        model = nn.ModuleDict({"a": nn.Linear(4, 4)})
        model["b"] = model["a"]
        return model

    for target, misses in (("a", False), ("b", False), ("", True)):
        case = loaded(build, infer=lambda model, batch, options: model["b"](*batch), compile_targets=(target,))
        facts = describe(case, "inference")
        assert (facts.called, facts.misses_targets) == (["a"], misses)


@pytest.mark.parametrize(
    "form", [torch.jit.script, lambda model: torch.jit.trace(model, torch.ones(1, 4)), torch.compile]
)
def test_a_compile_target_of_a_model_in_another_form(form: Callable[[nn.Module], Any]) -> None:
    case = loaded(lambda: form(nn.Sequential(nn.Linear(4, 4), nn.ReLU())), compile_targets=("",))
    assert describe(case, "inference").misses_targets is False


def test_inputs_that_do_not_fit() -> None:
    def with_inputs(make: Callable[..., Any]) -> str:
        return fails(loaded(lambda: nn.Linear(4, 4), inputs=make))

    assert "inputs of workload 'mine' hold no tensor. They must be dense tensors" in with_inputs(lambda b, g: ())
    for part, kind in (
        (torch.ones(2, 4).to_sparse(), "a tensor of layout torch.sparse_coo"),
        (torch.ones(2, 4).to_sparse_csr(), "a tensor of layout torch.sparse_csr"),
        (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged), "a nested tensor"),
        (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "a nested tensor"),
        (torch.quantize_per_tensor(torch.ones(2, 4), 1.0, 0, torch.qint8), "a quantized tensor (torch.qint8)"),
        (torch.ones(2, 4, device="meta"), "a tensor on the meta device, without values"),
        (object(), "of type object"),
    ):
        assert f"Input 0 of workload 'mine' is {kind}." in with_inputs(lambda b, g, part=part: (part,))
    assert "has shape [1, 4] for a batch of 2. The first dimension" in with_inputs(lambda b, g: (torch.ones(1, 4),))
    assert "Making the inputs of mine.py:make failed: KeyError" in with_inputs(lambda b, g: {}["x"])


class Parts(nn.Module):
    """A model whose step calls parts of it, and never the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 4)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder(x)


@pytest.mark.parametrize(
    ("targets", "misses"),
    [
        (("",), True),
        (("decoder",), True),
        (("decoder", "encoder"), False),
        (("encoder",), False),
        (("encoder.0",), False),
    ],
)
def test_a_step_that_calls_no_compile_target_is_known_before_it_is_measured(targets: Any, misses: bool) -> None:
    case = loaded(Parts, infer=lambda model, batch, options: model.encode(*batch), compile_targets=targets)
    facts = describe(case, "inference")
    assert (facts.called, facts.misses_targets) == (["encoder"], misses)


def test_a_step_that_calls_the_whole_model_reaches_every_target() -> None:
    for targets in (("",), ("0",)):
        facts = describe(loaded(lambda: nn.Sequential(nn.Linear(4, 4)), compile_targets=targets), "inference")
        assert (facts.called, facts.misses_targets) == ([""], False)


def test_what_no_convolution_uses_is_told_by_class_where_the_step_cannot_be_watched() -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 3))
            self.positions = nn.Parameter(torch.zeros(1, 4, 8, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("not now")

    assert describe(loaded(Failing), "inference").unconvolved == ["positions"]


def test_outputs_that_cannot_be_compared_are_told_before_anything_is_measured() -> None:
    def with_infer(infer: Callable[..., Any], **changes: Any) -> str:
        return fails(loaded(lambda: nn.Linear(4, 4), infer=infer, **changes))

    assert "The inference step returned None." in with_infer(lambda m, b, o: None)
    assert "returned an object of type object without tensors." in with_infer(lambda m, b, o: object())
    assert "returned an object of type dict without tensors (output.answer: it is text)." in with_infer(
        lambda m, b, o: {"answer": "a cat"}
    )
    assert "returned an object of type list without tensors." in with_infer(lambda m, b, o: [])
    assert "latent_dist.mode()" in with_infer(lambda m, b, o: (x for x in [m(*b)]))
    unknown = with_infer(lambda m, b, o: {"a": m(*b), "b": m(*b)}, compare={"c": "set"})
    assert "says how to compare 'c', which its step does not return. It returns output.a, output.b." in unknown

    def infer(model: nn.Module, batch: Any, options: Any) -> Any:
        return {"logits": model(*batch), 3: batch[0][:0], "text": "a cat", "none": None}

    facts = describe(loaded(lambda: nn.Linear(4, 4), infer=infer, compare={"3": "set"}), "inference")
    assert facts.not_compared == {"output.text": "it is text", "output.3": "it is empty"}
    failing = loaded(lambda: nn.Linear(4, 4), infer=lambda m, b, o: 1 / 0)
    assert describe(failing, "inference").not_compared == {}  # the measured step will say why it fails


def test_a_loss_that_is_none_is_told() -> None:
    def with_loss(loss: Callable[..., Any]) -> str:
        return fails(loaded(lambda: nn.Linear(4, 4), loss=loss), "training")

    assert "The loss of workload 'mine' is None. It must be a tensor of one number" in with_loss(lambda m, b: None)
    assert "is a tensor of shape [2, 4]" in with_loss(lambda m, b: m(*b))
    assert "is dict." in with_loss(lambda m, b: {"loss": m(*b).mean()})


@pytest.mark.parametrize(
    ("card_gib", "limit_gib", "size"),
    [(79, None, "huge"), (23, None, "large"), (5.8, None, "medium"), (79, 6, "medium")],
)
def test_auto_is_the_size_that_fits_the_card_or_the_limit(
    card_gib: float, limit_gib: int | None, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Device(kind="cuda", name="A card", index=0, total_memory_bytes=round(card_gib * 2**30))
    monkeypatch.setattr(probe, "probe_device", lambda _: card)
    choice = WorkloadChoice(reference="resnet50", size=None, parameters={}, mode=None)
    limit = None if limit_gib is None else limit_gib * 2**30
    assert once.describe(Describe(choice, "cuda:0", 1, limit)).workload.size == size
