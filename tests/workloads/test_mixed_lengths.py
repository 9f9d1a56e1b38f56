"""Sequences of different lengths: as many tokens in each batch, and the same results however they are batched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from gpubench.errors import GpubenchError
from gpubench.hardware.facts import Device
from gpubench.toggles.toggle import Scope
from gpubench.worker.prepare import apply_toggles, build, make_batches
from gpubench.worker.step import Stepper
from gpubench.workloads import mixed_lengths
from gpubench.workloads.catalog import TOGGLES
from gpubench.workloads.describe import describe
from gpubench.workloads.loader import load
from gpubench.workloads.mixed_lengths import order, sequences
from tests.running import BUSY, gpubench_here


def prepared(batching: str, mode: Any = "inference", **beside: str | int) -> Stepper:
    loaded = load("gpt", "tiny", {"lengths": "mixed"})
    configuration = {"batching": batching, **({"optimizer": "for-loop"} if mode == "training" else {}), **beside}
    context = build(loaded, mode, torch.device("cpu"), configuration, 0)
    apply_toggles(context, make_batches(loaded, context.batch_size, 2, 0))
    return Stepper(context)


def proofs(stepper: Stepper) -> dict[Any, bool | None]:
    (toggle,) = stepper.context.workload.toggles
    return {value: toggle.evidence(stepper.context, value).took_effect for value in toggle.values}


@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_each_batch_has_as_many_tokens(count: int) -> None:
    seen = set()
    for seed in range(20):
        drawn, last = sequences(count, 16, 256, torch.Generator().manual_seed(seed))
        lengths = [len(each) - 1 for each in drawn]
        assert len(drawn) == count
        assert sum(lengths) == 16 * count
        assert last.tolist() == [length - 1 for length in lengths]
        assert all(1 <= length <= 31 for length in lengths)
        assert all(int(each.max()) < 256 for each in drawn)
        seen.add(tuple(lengths))
    assert len(seen) > 10 or count == 1
    again = sequences(count, 16, 256, torch.Generator().manual_seed(3))[0]
    assert all(map(torch.equal, again, sequences(count, 16, 256, torch.Generator().manual_seed(3))[0]))


def test_buckets_hold_sequences_of_like_lengths() -> None:
    lengths = [9, 1, 8, 2, 7, 3, 6, 4]
    assert order(lengths, "padded") == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert order(lengths, "bucketed") == [[1, 3], [5, 7], [6, 4], [2, 0]]
    assert order([5, 4, 3], "padded") == [[0], [1], [2]]


@pytest.mark.parametrize("batching", ["padded", "bucketed"])
def test_scores_are_those_of_each_sequence_alone(batching: str) -> None:
    stepper = prepared(batching)
    stepper.run(0)
    model, (drawn, _) = stepper.context.model, stepper.context.batches[0]
    with torch.no_grad():
        alone = torch.stack([model(each[None, :-1])[0, -1] for each in drawn])
    torch.testing.assert_close(stepper.output, alone, rtol=1e-4, atol=1e-5)
    assert proofs(stepper) == {value: value == batching for value in ("padded", "bucketed")}


@pytest.mark.parametrize("batching", ["padded", "bucketed"])
def test_the_loss_is_the_mean_over_the_sequences_own_tokens(batching: str) -> None:
    stepper = prepared(batching, "training")
    model, (drawn, _) = stepper.context.model, stepper.context.batches[0]
    with torch.no_grad():
        losses = [nn.functional.cross_entropy(model(each[None, :-1])[0], each[1:], reduction="none") for each in drawn]
    stepper.run(0)
    torch.testing.assert_close(stepper.loss, torch.cat(losses).mean())
    assert proofs(stepper)[batching] is True


def test_buckets_need_less_padding_for_as_many_tokens() -> None:
    padding = {"padded": 0, "bucketed": 0}
    for seed in range(20):
        drawn, _ = sequences(8, 16, 256, torch.Generator().manual_seed(seed))
        lengths = [len(each) - 1 for each in drawn]
        for batching in padding:
            longest = [max(lengths[place] for place in places) for places in order(lengths, batching)]
            padding[batching] += 2 * sum(longest) - 128
    assert padding["bucketed"] < padding["padded"] / 2
    stepper = prepared("bucketed")
    stepper.run(0)
    (toggle,) = stepper.context.workload.toggles
    detail = toggle.evidence(stepper.context, "bucketed").detail
    assert detail.startswith("4 forward passes in the step, over 128 tokens of sequences and ")
    assert stepper.context.batch_size * stepper.context.workload.items_per_sample == 128


def test_batches_made_another_way_are_caught() -> None:
    stepper = prepared("bucketed")
    with mock.patch.object(mixed_lengths, "order", lambda lengths, _: order(lengths, "padded")):
        stepper.run(0)
    assert proofs(stepper) == {"padded": True, "bucketed": False}


@pytest.mark.slow
def test_it_is_compiled_with_sizes_that_change() -> None:
    torch._dynamo.reset()
    stepper = prepared("bucketed", compile="default")
    eager = prepared("padded")
    for index in (0, 1):
        stepper.run(index)
        eager.run(index)
        torch.testing.assert_close(stepper.output, eager.output, rtol=1e-3, atol=1e-4)
    assert proofs(stepper)["bucketed"] is True
    torch._dynamo.reset()


def test_where_it_applies() -> None:
    assert "batching" in TOGGLES["gpt"]
    for lengths, mode, reason in (
        ("same", "inference", "all sequences have the same length; --param lengths=mixed mixes them"),
        ("mixed", "inference", None),
        ("mixed", "training", None),
    ):
        loaded = load("gpt", "tiny", {"lengths": lengths})
        toggle = next(each for each in loaded.workload.toggles if each.name == "batching")
        facts = describe(loaded, mode)
        scope = Scope(device=Device(kind="cpu", name="A CPU", cores=2), workload=facts, torch_version=(2, 13))
        assert toggle.applies(scope) == reason
    with pytest.raises(GpubenchError, match="lengths=mixed is for task=prefill"):
        load("gpt", "tiny", {"lengths": "mixed", "task": "generate"})
    with pytest.raises(GpubenchError, match="Unknown kind of lengths of gpt 'mixd'"):
        load("gpt", "tiny", {"lengths": "mixd"})


@pytest.mark.slow
def test_both_ways_are_measured_and_right(tmp_path: Path) -> None:
    done = gpubench_here(
        "compare-opts", "gpt", "--size", "tiny", "--param", "lengths=mixed", "--set", "batching=bucketed", "--strategy",
        "each", "--final-rounds", "0", *BUSY, "--format", "json", "--output", "report.json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    rows = json.loads(done.stdout)["measurements"]
    assert [(row["status"], row["configuration"]["batching"]) for row in rows] == [
        ("ok", "padded"), ("ok", "bucketed"),
    ]  # fmt: skip
    assert all(row["quality"]["passed"] for row in rows)
