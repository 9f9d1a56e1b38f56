"""Chunks of the loss and of the sequence change neither loss nor gradients; and what ran in chunks is seen."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gpubench.hardware.facts import Device
from gpubench.measure.trace import Operator, trace_step
from gpubench.toggles.toggle import Scope
from gpubench.worker.prepare import apply_toggles, build, make_batches
from gpubench.worker.step import Stepper
from gpubench.workloads.catalog import TOGGLES
from gpubench.workloads.chunking import LOSS_CHUNKS, SEQUENCE_CHUNK, full, loss_in_chunks, tokens_at_once
from gpubench.workloads.describe import describe
from gpubench.workloads.loader import load

WEIGHTS = {"gpt": "tokens.weight", "recurrent_lm": "embedding.weight"}


@pytest.mark.parametrize("chunks", [1, 4, 16, 30])
@pytest.mark.parametrize("mean", [True, False])
def test_gradients_are_those_of_the_whole_loss(chunks: int, mean: bool) -> None:
    """Also of chunks that are not equally long, and of more chunks than tokens."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(3, 20, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(50, (3, 20), generator=generator)
    scores = F.linear(states, weight).flatten(0, 1)
    whole = F.cross_entropy(scores, targets.flatten(), reduction="mean" if mean else "sum")
    parts = loss_in_chunks(states, weight, targets, chunks, mean=mean)
    torch.testing.assert_close(parts, whole, rtol=1e-10, atol=0)
    expected = torch.autograd.grad(whole, (states, weight))
    for got, one in zip(torch.autograd.grad(parts, (states, weight)), expected, strict=True):
        torch.testing.assert_close(got, one, rtol=1e-10, atol=1e-10)


def test_the_scores_of_all_tokens_are_not_kept() -> None:
    states, weight = torch.randn(2, 64, 8), torch.randn(500, 8, requires_grad=True)
    targets, kept = torch.zeros(2, 64, dtype=torch.long), []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() != weight.data_ptr():  # which is there anyway
            kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        F.cross_entropy(F.linear(states, weight).flatten(0, 1), targets.flatten())
        whole = max(kept)
        kept.clear()
        loss_in_chunks(states, weight, targets, 16)
    assert whole == 2 * 64 * 500
    assert sum(kept) < whole / 10


@pytest.mark.parametrize(("dtype", "wide"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_a_loss_is_computed_in_fp32_or_wider(dtype: torch.dtype, wide: torch.dtype) -> None:
    assert full(torch.ones(2, dtype=dtype)).dtype == wide


def ran_with(
    reference: str, mode: str = "training", **configuration: int | str
) -> tuple[dict[str, Tensor], dict, Stepper]:
    """The gradients or outputs, and of each toggle whether it says of each of its values that this is what ran."""
    case = load(reference, "tiny")
    chosen = {**configuration, **({"optimizer": "for-loop"} if mode == "training" else {})}
    context = build(case, mode, torch.device("cpu"), chosen, 0)
    apply_toggles(context, make_batches(case, context.batch_size, 1, 0))
    stepper = Stepper(context)
    context.trace = trace_step(lambda: stepper.run(0), cuda=False)
    if mode == "training":
        found = {name: each.grad.clone() for name, each in context.model.named_parameters() if each.grad is not None}
        found["loss"] = stepper.loss
    else:
        found = dict(enumerate(stepper.output)) if isinstance(stepper.output, tuple) else {0: stepper.output}
    proofs = {
        toggle.name: {value: toggle.evidence(context, value).took_effect for value in toggle.values}
        for toggle in case.workload.toggles
        if toggle.name in (LOSS_CHUNKS, SEQUENCE_CHUNK)
    }
    return found, proofs, stepper


@pytest.mark.parametrize("asked", [1, 4])
def test_chunks_prove_themselves_in_parts_of_a_batch(asked: int) -> None:
    _, proofs, _ = ran_with("gpt", accumulation=2, loss_chunks=asked)
    assert proofs[LOSS_CHUNKS] == {value: value == asked for value in (1, 4, 16)}


@pytest.mark.parametrize("reference", WEIGHTS)
def test_each_number_of_chunks_proves_itself_and_an_idle_one_is_caught(reference: str) -> None:
    assert TOGGLES[reference] == tuple(toggle.name for toggle in load(reference, "tiny").workload.toggles)
    scan = {"scan": "log"} if reference == "recurrent_lm" else {}
    expected, _, _ = ran_with(reference, **scan)
    for asked in (1, 4, 16):
        found, proofs, _ = ran_with(reference, loss_chunks=asked, **scan)
        assert found.keys() == expected.keys()
        for name, one in found.items():
            torch.testing.assert_close(one, expected[name], rtol=1e-4, atol=1e-6, msg=name)
        assert proofs[LOSS_CHUNKS] == {value: value == asked for value in (1, 4, 16)}


@pytest.mark.parametrize(("mode", "changed"), [("inference", [8, 1]), ("training", [4])])
def test_each_chunk_of_the_sequence_proves_itself(mode: str, changed: list[int]) -> None:
    expected, proofs, _ = ran_with("recurrent_lm", mode, scan="log")
    assert proofs[SEQUENCE_CHUNK] == {0: True, 8: False, 4: False, 2: False, 1: False}
    for asked in changed:
        found, proofs, _ = ran_with("recurrent_lm", mode, scan="log", sequence_chunk=asked)
        for name, one in found.items():
            torch.testing.assert_close(one, expected[name], rtol=1e-3, atol=1e-5)
        assert proofs[SEQUENCE_CHUNK] == {value: value == asked for value in (0, 8, 4, 2, 1)}
        if mode == "training":
            assert proofs[LOSS_CHUNKS][1] is True


def test_a_chunk_that_was_asked_for_by_a_parameter_is_the_baseline() -> None:
    toggles = {toggle.name: toggle for toggle in load("recurrent_lm", "tiny", {"chunk": "4"}).workload.toggles}
    assert list(toggles[SEQUENCE_CHUNK].values) == [4, 0, 1, 2, 8]
    assert list(load("recurrent_lm", "tiny", {"length": "7"}).workload.toggles[2].values) == [0]


def scope(reference: str, mode: str, **parameters: str) -> tuple[Scope, dict]:
    case = load(reference, "tiny", parameters)
    device = Device(kind="cpu", name="A CPU")
    toggles = {toggle.name: toggle for toggle in case.workload.toggles}
    return Scope(device=device, workload=describe(case, mode), torch_version=(2, 13)), toggles


def test_where_there_is_no_loss_and_where_there_are_chunks_already() -> None:
    there, toggles = scope("gpt", "inference")
    assert toggles[LOSS_CHUNKS].applies(there) == "only training has a loss"
    there, toggles = scope("recurrent_lm", "training")
    assert toggles[LOSS_CHUNKS].applies(there) is None
    assert toggles[LOSS_CHUNKS].unmet(there, 4, {SEQUENCE_CHUNK: 0}) is None
    assert toggles[LOSS_CHUNKS].unmet(there, 4, {SEQUENCE_CHUNK: 8}) == (
        "does nothing beside sequence_chunk=8; only 1 is allowed there"
    )
    there, toggles = scope("recurrent_lm", "training", length="8")
    assert toggles[LOSS_CHUNKS].unmet(there, 16, {SEQUENCE_CHUNK: 0}) == "needs as many tokens, and a sequence has 8"


@pytest.mark.parametrize(
    ("shapes", "tokens"),
    [
        (((12, 8), (8, 50)), [12]),
        (((8, 12), (12, 50)), [12]),  # of the gradient of the weight
        (((12, 50), (50, 8)), [12]),
        (((50,), (12, 8), (8, 50)), [12]),  # with a bias
        (((3, 4, 8), (50, 8)), [12]),  # a linear layer's arguments
        (((8, 8), (8, 50)), [8]),  # as many tokens as the states are wide
        (((12, 8), (8, 32)), []),
        (((12, 50), (50, 50)), []),
        (((50, 8),), []),
    ],
)
def test_the_tokens_of_a_product_are_what_is_neither_vocabulary_nor_width(shapes, tokens) -> None:
    operator = Operator(name="aten::mm", dtypes=(), shapes=shapes, strides=())
    assert tokens_at_once([operator], words=50, width=8) == tokens


@pytest.mark.slow
@pytest.mark.parametrize("reference", WEIGHTS)
def test_a_loss_in_chunks_is_compiled_with_its_model(reference: str) -> None:
    workload = load(reference, "tiny").workload
    torch.manual_seed(0)
    model = build(load(reference, "tiny"), "training", torch.device("cpu"), {"scan": "log"}, 0).model
    batch = workload.inputs(2, torch.Generator().manual_seed(1))
    plain = workload.loss(model, batch, {LOSS_CHUNKS: 4})
    torch._dynamo.reset()
    model.compile(backend="aot_eager", fullgraph=True)
    loss = workload.loss(model, batch, {LOSS_CHUNKS: 4})
    torch.testing.assert_close(loss, plain)
    loss.backward()
    assert model.get_parameter(WEIGHTS[reference]).grad is not None
