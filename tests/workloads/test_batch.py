"""Inputs as users have them: nests of tensors, with what goes beside them."""

from __future__ import annotations

import collections
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gpubench.errors import GpubenchError
from gpubench.hardware.facts import Device
from gpubench.toggles import all_toggles
from gpubench.toggles.printed import each_input, run_lines
from gpubench.toggles.toggle import Scope
from gpubench.worker.once import infer_in_parts
from gpubench.worker.prepare import apply_toggles, build, make_batches
from gpubench.worker.step import Stepper
from gpubench.workloads.batch import can_be_split, is_flat, learn, leaves, map_tensors, split, tensors, unlike
from gpubench.workloads.describe import describe
from gpubench.workloads.loader import Loaded
from gpubench.workloads.workload import Workload, call_model
from tests.running import BUSY, ROOT, gpubench_here


@dataclass
class Sample:
    image: Any
    mask: Any = None


@dataclass
class Frozen:
    inner: Sample


Pair = collections.namedtuple("Pair", "left right")
NEST = {"ids": torch.arange(6).view(2, 3), "more": (Frozen(Sample(torch.ones(2, 4))), None, 3, "text")}


def loaded(**changes: Any) -> Loaded:
    fields: dict[str, Any] = {
        "name": "mine", "item": "row", "batch_size": 2, "build": lambda: nn.Linear(4, 4),
        "inputs": lambda count, generator: (torch.randn(count, 4, generator=generator),),
    }  # fmt: skip
    of = Workload(**(fields | changes))
    return Loaded(workload=of, reference="mine.py:make", size="default", parameters={}, source_hash=None)


def test_a_nest_is_walked_and_what_is_no_tensor_stays() -> None:
    learn(NEST)
    learn(NEST)  # once more, as every process of a run may
    assert [tuple(each.shape) for each in tensors(NEST)] == [(2, 3), (2, 4)]
    assert [place for place, _ in leaves(NEST)] == ["ids", "more.0.inner.image", "more.1", "more.2", "more.3"]
    twice = map_tensors(lambda each: each * 2, NEST)
    assert twice["more"][1:] == (None, 3, "text")
    assert twice["more"][0].inner.image.sum() == 16
    assert isinstance(twice["more"][0].inner, Sample)
    assert is_flat((torch.ones(2),)) and not is_flat([torch.ones(2)]) and not is_flat(NEST)


def test_the_batch_is_the_first_dimension_or_the_length_of_a_list() -> None:
    images = [torch.ones(1, 5, 7), torch.ones(1, 6, 4)]
    assert unlike((images, torch.ones(2, 1)), 2) == []
    assert [place for place, _ in unlike((images, torch.ones(2, 1)), 3)] == ["0.0", "0.1", "1"]
    pyramid = [torch.ones(4, 8), torch.ones(4, 4)]
    assert unlike({"features": pyramid}, 4) == []
    assert [place for place, _ in unlike({"scalar": torch.tensor(1.0)}, 4)] == ["scalar"]
    assert can_be_split(NEST) and not can_be_split((torch.ones(2, 1), images))
    halves = split(NEST, 2)
    assert [half["ids"].tolist() for half in halves] == [[[0, 1, 2]], [[3, 4, 5]]]
    assert halves[1]["more"][0].inner.image.shape == (1, 4)


@pytest.mark.parametrize(
    ("batch", "called"),
    [
        ((1, 2), ((1, 2), {})),
        ([1, 2], ((1, 2), {})),
        ({"a": 1}, ((), {"a": 1})),
        (Pair(1, 2), ((Pair(1, 2),), {})),
        (Sample(1), ((Sample(1),), {})),
    ],
)
def test_how_a_model_is_called(batch: Any, called: Any) -> None:
    assert call_model(lambda *given, **named: (given, named), batch, {}) == called  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [NEST, (torch.ones(2, 4),)])
def test_the_printed_line_changes_each_tensor(batch: Any) -> None:
    learn(batch)
    line = each_input("x.double() if x.is_floating_point() else x", nested=not is_flat(batch))
    changed = run_lines(line, inputs=batch)["inputs"]
    assert type(changed) is type(batch)
    assert [each.dtype for each in tensors(changed) if each.is_floating_point()] == [torch.float64]


class Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 3)

    def forward(self, sample: Sample, count: int = 1, **more: Any) -> torch.Tensor:
        out: torch.Tensor = self.layer(sample.image).flatten(1) * count
        return out if sample.mask is None else out * sample.mask


def images(count: int, generator: torch.Generator) -> dict[str, Any]:
    image = torch.randn(count, 4, 8, 8, generator=generator)
    return {"sample": Sample(image, torch.ones(count, 1, dtype=torch.bool)), "count": 2, "extra": None}


def test_toggles_leave_integers_and_what_is_no_tensor_alone() -> None:
    case = loaded(build=Reads, inputs=images)
    facts = describe(case, "inference")
    assert (facts.input_shapes, facts.nested_inputs) == ([[2, 4, 8, 8], [2, 1]], True)
    context = build(case, "inference", torch.device("cpu"), {"precision": "bf16-weights", "channels_last": "on"}, 0)
    context.facts = facts
    apply_toggles(context, make_batches(case, 2, 2, 0))
    sample = context.batches[0]["sample"]
    assert (sample.image.dtype, sample.mask.dtype) == (torch.bfloat16, torch.bool)
    assert sample.image.is_contiguous(memory_format=torch.channels_last)
    assert (context.batches[0]["count"], context.batches[0]["extra"]) == (2, None)
    stepper = Stepper(context)
    stepper.run(0)
    assert stepper.output.dtype is torch.bfloat16
    sizes = all_toggles()["batch_size"].evidence(context, 2)
    assert (sizes.took_effect, sizes.detail) == (True, "the inputs' first dimension is 2")
    assert all_toggles()["batch_size"].evidence(context, 3).took_effect is False


def test_a_reference_that_does_not_fit_is_made_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    case = loaded(build=Reads, inputs=images, batch_size=4)
    context = build(case, "inference", torch.device("cpu"), {}, 0)
    apply_toggles(context, make_batches(case, 4, 1, 0))
    stepper = Stepper(context)
    whole = infer_in_parts(stepper, 0)
    run = stepper.run

    def small(index: int) -> None:
        if len(context.batches[index]["sample"].image) > 2:
            raise torch.OutOfMemoryError("too much")
        run(index)

    monkeypatch.setattr(stepper, "run", small)
    assert torch.equal(infer_in_parts(stepper, 0)["output"], whole["output"])


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ((), "hold no tensor"),
        ({"a": None}, "hold no tensor"),
        (torch.ones(2, 4).to_sparse(), "The input of workload 'mine' is a tensor of layout torch.sparse_coo"),
        ({"pixels": torch.ones(3, 4)}, "Input pixels of workload 'mine' has shape .3, 4. for a batch of 2"),
        ({"x": (torch.ones(2, 4), object())}, "Input x.1 of workload 'mine' is of type object"),
        (([torch.ones(5), torch.ones(6), torch.ones(7)],), "Input 0.0 of workload 'mine' has shape .5."),
    ],
)
def test_what_does_not_fit_is_said_with_its_place(batch: Any, words: str) -> None:
    with pytest.raises(GpubenchError, match=words):
        describe(loaded(inputs=lambda count, generator: batch), "inference")


@pytest.mark.slow
def test_the_example_with_keyword_inputs_runs(tmp_path: Path) -> None:
    reference = f"{ROOT / 'examples' / 'keyword_inputs.py'}:reader"
    for mode in ("inference", "training"):
        done = gpubench_here(
            "compare-opts", reference, "--mode", mode, "--set", "precision=bf16-weights", "--strategy", "each",
            "--final-rounds", "0", *BUSY, "--format", "json", "--output", f"{mode}.json", cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        rows = json.loads(done.stdout)["measurements"]
        assert rows[0]["status"] == "ok", rows
        assert rows[1]["status"] in ("ok", "wrong"), rows[1]["reason"]  # bf16 weights may lose the updates
        assert rows[1]["evidence"]


class Rotary(nn.Module):
    """Turns pairs of values by angles that are kept as complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("turns", torch.polar(torch.ones(2), torch.tensor([0.3, 0.7])))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        turned = torch.view_as_complex(y.float().unflatten(-1, (2, 2))) * self.turns
        return torch.view_as_real(turned).flatten(-2).to(y)


def test_complex_buffers_stay_as_they_are() -> None:
    case = loaded(build=Rotary)
    facts = describe(case, "inference")
    assert facts.complex_weights is True
    assert describe(loaded(), "inference").complex_weights is False
    context = build(case, "inference", torch.device("cpu"), {"precision": "bf16-weights"}, 0)
    apply_toggles(context, make_batches(case, 2, 1, 0))
    assert (context.model.layer.weight.dtype, context.model.turns.dtype) == (torch.bfloat16, torch.complex64)
    stepper = Stepper(context)
    stepper.step()
    assert stepper.output.dtype is torch.bfloat16
    scope = Scope(device=Device(kind="cpu", name="A CPU", cores=2), workload=facts, torch_version=(2, 13))
    lines = all_toggles()["precision"].usage("bf16-weights", scope)
    model = run_lines(lines, model=Rotary(), inputs=(torch.ones(2, 4),))["model"]
    assert (model.layer.weight.dtype, model.turns.dtype) == (torch.bfloat16, torch.complex64)
