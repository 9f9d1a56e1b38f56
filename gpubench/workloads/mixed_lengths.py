"""Sequences of different lengths in the batches of a language model, and the toggle `batching`: how they are batched.

A step works through the same sequences either way, in as many forward passes over as many of them, and counts their
own tokens alone. What differs is how much padding goes through the model with them. Padding comes after a sequence,
where none of its tokens sees it, so that the results are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from gpubench.report.model import Value
from gpubench.text import plural
from gpubench.toggles.model_context import ModelContext
from gpubench.toggles.toggle import EvidenceResult, Scope, Stage, Toggle
from gpubench.workloads.workload import Batch

BATCHING = "batching"
PADDED, BUCKETED = "padded", "bucketed"
BATCHES = 4  # forward passes of a step, each over a fourth of its sequences
NO_TARGET = -100  # what torch's cross-entropy leaves out

Passes = list[tuple[int, int]]  # of a step: sequences of each forward pass, and the tokens that each is padded to


def sequences(count: int, mean: int, vocabulary: int, generator: torch.Generator) -> Batch:
    """`count` random sequences of at least one token and the one after it, and where the last but one of each is.

    Lengths are uniform from 1 to 2 `mean` - 1 and `mean` on average in every batch, so that a step has as many tokens
    as another: they come in pairs that are as much above as below it, in random order.
    """
    half = torch.randint(1, 2 * mean, (count // 2,), generator=generator)
    lengths = torch.cat((half, 2 * mean - half, torch.full((count % 2,), mean)))
    lengths = lengths[torch.randperm(count, generator=generator)]
    drawn = [torch.randint(vocabulary, (length + 1,), generator=generator) for length in lengths.tolist()]
    return drawn, lengths - 1


def order(lengths: Sequence[int], batching: str) -> list[list[int]]:
    """Which sequences go through the model together: as they come, or those of like lengths."""
    places = sorted(range(len(lengths)), key=lengths.__getitem__) if batching == BUCKETED else list(range(len(lengths)))
    size = -(-len(lengths) // BATCHES)
    return [places[start : start + size] for start in range(0, len(lengths), size)]


def prefill(
    step: Callable[[nn.Module, Tensor, Tensor], Tensor], model: nn.Module, batch: Batch, batching: str, passes: Passes
) -> Tensor:
    """Scores of the token after each sequence: [B, V], in the order of `batch`.

    step: (model, tokens [B, T], last [B]) -> scores of the token after the one at `last` of each, [B, V].
    """
    drawn, last = batch
    passes.clear()
    scores: dict[int, Tensor] = {}
    for places in order([len(each) for each in drawn], batching):
        tokens = pad_sequence([drawn[place][:-1] for place in places], batch_first=True)
        passes.append((tokens.shape[0], tokens.shape[1]))
        found = step(model, tokens, torch.stack([last[place] for place in places]))
        scores |= zip(places, found.unbind(), strict=True)
    return torch.stack([scores[place] for place in range(len(drawn))])


def loss(model: nn.Module, batch: Batch, batching: str, passes: Passes) -> Tensor:
    """The mean cross-entropy of each token after another, over all sequences."""
    drawn, _ = batch
    passes.clear()
    sums = []
    for places in order([len(each) for each in drawn], batching):
        tokens = pad_sequence([drawn[place][:-1] for place in places], batch_first=True)
        following = pad_sequence([drawn[place][1:] for place in places], batch_first=True, padding_value=NO_TARGET)
        passes.append((tokens.shape[0], tokens.shape[1]))
        scores = model(tokens).float().flatten(0, 1)
        sums.append(F.cross_entropy(scores, following.flatten(), ignore_index=NO_TARGET, reduction="sum"))
    mean: Tensor = torch.stack(sums).sum() / sum(len(each) - 1 for each in drawn)
    return mean


def toggle(passes: Passes, mixed: bool) -> Toggle:
    """The toggle of that name; `passes` holds those of the last step, `mixed` says whether lengths differ."""

    def applies(_: Scope) -> str | None:
        """Applies to sequences of different lengths."""
        return None if mixed else "all sequences have the same length; --param lengths=mixed mixes them"

    def evidence(context: ModelContext, value: Value) -> EvidenceResult:
        """Whether the sequences of a batch went through the model together with those that the value asks for."""
        wanted = [_passes([len(each) - 1 for each in batch[0]], str(value)) for batch in context.batches]
        real = sum(len(each) - 1 for each in context.batches[0][0])
        padding = sum(rows * longest for rows, longest in passes) - real
        words = f"{plural(len(passes), 'forward pass', 'forward passes')} in the step, over {real} tokens of sequences"
        return EvidenceResult(passes in wanted, f"{words} and {padding} of padding")

    return Toggle(
        name=BATCHING,
        summary="Which sequences of different lengths go through the model together, padded to the longest of them.",
        values={
            PADDED: "a fourth of them as they come, as a shuffled loader gives them",
            BUCKETED: "a fourth of them of like lengths, as a sampler by length gives them: less padding",
        },
        stage=Stage.PROBLEM,
        applies=applies,
        evidence=evidence,
        usage=lambda value, _: f'options["{BATCHING}"] = "{value}"  # for the workload\'s infer and loss',
        claims=("bf16-guide",),
        source="Khomenko et al., Accelerating recurrent neural network training using sequence bucketing (2017)",
    )


def _passes(lengths: Sequence[int], batching: str) -> Passes:
    return [(len(places), max(lengths[place] for place in places)) for places in order(lengths, batching)]
