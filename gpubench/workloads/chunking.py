"""Chunks of a language model's sequence: of its loss, so that the scores of all tokens are never kept, or of all.

The toggles `loss_chunks` and `sequence_chunk`.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gpubench.report.model import Value
from gpubench.text import plural
from gpubench.toggles.evidence import compute_operators, recorded
from gpubench.toggles.model_context import ModelContext
from gpubench.toggles.toggle import EvidenceResult, Requirement, Scope, Stage, Toggle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpubench.measure.trace import Operator

LOSS_CHUNKS = "loss_chunks"
SEQUENCE_CHUNK = "sequence_chunk"


def full(scores: Tensor) -> Tensor:
    """`scores` in fp32, which a loss is computed in, or in what is wider."""
    return scores.float() if scores.itemsize < 4 else scores


def loss_in_chunks(states: Tensor, weight: Tensor, targets: Tensor, chunks: int, *, mean: bool = True) -> Tensor:
    """The cross-entropy of the scores `states @ weight.T`, the mean over tokens or their sum, chunk by chunk.

    states [B, T, C], weight [V, C], targets [B, T]. Of a chunk of the T tokens only its loss is kept; the backward
    pass computes its scores [B, T / chunks, V] again.
    """
    losses = [
        checkpoint(_part, part, weight, target, use_reentrant=False, preserve_rng_state=False)
        for part, target in zip(states.chunk(chunks, dim=1), targets.chunk(chunks, dim=1), strict=True)
    ]
    total = torch.stack(losses).sum()
    return total / targets.numel() if mean else total


def _part(states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    scores = full(F.linear(states, weight))
    return F.cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction="sum")


def _matrices(operator: Operator) -> list[tuple[int, int]]:
    """The shapes of an operator's first two arguments that are matrices or stacks of rows, as rows and columns."""
    found = [(math.prod(shape[:-1]), shape[-1]) for shape in operator.shapes if len(shape) >= 2]
    return found[:2]


def tokens_at_once(operators: Sequence[Operator], words: int, width: int) -> list[int]:
    """For each matrix product of `operators` that scores words: of how many tokens.

    A product of three lengths, of which one is the `words` of the vocabulary and one the `width` of the states.
    """
    found = []
    for operator in operators:
        matrices = _matrices(operator)
        if len(matrices) < 2:
            continue
        (rows, inner), (first, second) = matrices
        if inner not in (first, second):
            continue
        lengths = Counter((rows, inner, second if inner == first else first))
        rest = lengths - Counter((words, width))
        if lengths[words] and lengths[width] and rest.total() == 1:
            found.append(next(rest.elements()))
    return found


def loss_chunks(weight: str, tokens: int) -> Toggle:
    """The toggle of that name, of a model whose last layer has the parameter `weight` [V, C]; `tokens`: a sequence."""

    def is_training(scope: Scope) -> str | None:
        """Applies to training."""
        return None if scope.workload.mode == "training" else "only training has a loss"

    def evidence(context: ModelContext, value: Value) -> EvidenceResult:
        """Whether the matrix products that score words are of so many tokens, and none is of all."""
        trace = recorded(context)
        if isinstance(trace, EvidenceResult):
            return trace
        words, width = context.model.get_parameter(weight).shape
        found = tokens_at_once(compute_operators(trace), words, width)
        if not found:
            told = f"no matrix product of {words} words and width {width} is visible in the step"
            return EvidenceResult(True if value == 1 else None, told)
        length = int(context.options.get(SEQUENCE_CHUNK, 0)) or tokens  # that the model is called with
        items = context.batch_size // context.parts
        whole, expected = items * length, items * math.ceil(length / int(value))
        return EvidenceResult(
            expected in found and (value == 1 or whole not in found),
            f"{plural(len(found), 'matrix product')} of {words} words in the step, the largest of {max(found)} tokens; "
            f"{plural(int(value), 'chunk')} of {whole} tokens: {expected}",
        )

    def fewer_than(chunks: int) -> Requirement:
        def check(_: Scope) -> str | None:
            """As many tokens."""
            return f"needs as many tokens, and a sequence has {tokens}" if tokens < chunks else None

        return Requirement(check=check)

    return Toggle(
        name=LOSS_CHUNKS,
        summary="Chunks of the sequence in which scores and loss are computed.",
        values={
            1: "the scores of all tokens at once, which are kept for the backward pass",
            4: "a quarter of the tokens at a time; the backward pass computes their scores again",
            16: "a sixteenth of them",
        },
        stage=Stage.PROBLEM,
        applies=is_training,
        requires={chunks: fewer_than(chunks) for chunks in (4, 16)},
        evidence=evidence,
        usage=lambda value, _: f'options["{LOSS_CHUNKS}"] = {value}  # for the workload\'s loss',
        claims=("mmrec-cpu",),
        source="Hsu et al., Liger Kernel: Efficient Triton Kernels for LLM Training (2024), FusedLinearCrossEntropy",
    )


def sequence_chunk(tokens: int, first: int, calls: list[int]) -> Toggle:
    """The toggle of that name, for sequences of `tokens`.

    first: the value that is the baseline; 0 is the whole sequence.
    calls: tokens that the model was called with in the last step, call by call.
    """
    lengths = [tokens // parts for parts in (16, 8, 4, 2) if tokens % parts == 0]
    values: dict[Value, str] = {0: "all tokens at once"}
    values |= {length: f"{length} at a time, which begin with the state after those before" for length in lengths}

    def evidence(context: ModelContext, value: Value) -> EvidenceResult:
        """Whether each call of the model in the step had so many tokens."""
        words = " or ".join(map(str, sorted(set(calls)))) or "no"
        told = f"calls of the model in the step had {words} of {tokens} tokens"
        return EvidenceResult(set(calls) == {int(value) or tokens}, told)

    baseline: dict[Value, str] = {first: values.get(first, f"{first} at a time")}
    return Toggle(
        name=SEQUENCE_CHUNK,
        summary="Tokens of a sequence that are worked through at once; in training the others are computed again.",
        values={**baseline, **values},
        stage=Stage.PROBLEM,
        evidence=evidence,
        usage=lambda value, _: f'options["{SEQUENCE_CHUNK}"] = {value}  # for the workload\'s infer or loss',
        magnitude=lambda value: int(value) or math.inf,
        claims=("mmrec-cpu",),
        source="Chen et al., Training Deep Nets with Sublinear Memory Cost (2016)",
    )
