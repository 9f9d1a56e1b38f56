"""Hawk, a recurrent language model whose gated recurrence is an associative scan: training and prefill.

Architecture: De et al., "Griffin: Mixing Gated Linear Recurrences with Local Attention for Efficient Language Models"
(2024), figure 2: residual blocks of a recurrent block (its RG-LRU in section 2.4) and a gated MLP. Without attention
that is Hawk. `base` has width and depth of the paper's smallest model, "100M" (appendix C), and 32,000 words: 118.4 M
parameters, 93.8 M of them not the embedding's, and 2 FLOPs a parameter and token (0.97 TFLOP for its batch), 6 in
training; a prefill has logits of the last token alone. Biases are where DeepMind's code of Hawk has them, of which the
7B preset has 7.11 B parameters here without the embedding's.

Share of a step's time by the profiler (scan=loop, batch 1, 128 tokens, one core of a busy 2-core Intel Xeon VM; the
recurrence is element-wise work):

    |                 | matrix products | element-wise | convolution | normalisation |
    | base inference  |            76 % |         21 % |         2 % |           1 % |
    | small inference |            90 % |          9 % |         1 % |           0 % |
    | base training   |            65 % |         33 % |         2 % |           0 % |
    | small training  |            68 % |         29 % |         2 % |           1 % |
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpubench.errors import GpubenchError
from gpubench.report.model import Value
from gpubench.text import plural, times
from gpubench.toggles.evidence import recorded
from gpubench.toggles.model_context import ModelContext
from gpubench.toggles.toggle import EvidenceResult, Requirement, Scope, Stage, Toggle
from gpubench.workloads import scans
from gpubench.workloads.building import NOTHING
from gpubench.workloads.chunking import LOSS_CHUNKS, SEQUENCE_CHUNK, full, loss_chunks, loss_in_chunks, sequence_chunk
from gpubench.workloads.parameters import check_side, choose
from gpubench.workloads.workload import Batch, Options, Workload

EXPANSION = 3  # inner width of the MLP / width of the model
TAPS = 4  # tokens that the convolution over time sees
SHARPNESS = 8.0  # c of the RG-LRU: a gate of 0 to 1 makes its decay 1 to decay**c
OPERATOR = "gpubench::linear_scan"  # of `native`
DECAYS = 0.9, 0.999  # decay**c at the start, uniformly distributed


@dataclass(frozen=True)
class Config:
    """One size."""

    width: int
    channels: int  # of the recurrence
    depth: int  # residual blocks
    blocks: int  # of the block-diagonal weights of the gates
    vocabulary: int
    length: int  # tokens of a sequence
    batch_size: int  # sequences


# Training "base" in fp32 takes some 8 GiB: 1.8 for weights, gradients and AdamW's two averages, 2.7 for the activations
# of each sequence.
SIZES = {
    "huge": Config(width=768, channels=1024, depth=12, blocks=16, vocabulary=32_000, length=2048, batch_size=18),
    "xlarge": Config(width=768, channels=1024, depth=12, blocks=16, vocabulary=32_000, length=2048, batch_size=9),
    "large": Config(width=768, channels=1024, depth=12, blocks=16, vocabulary=32_000, length=2048, batch_size=5),
    "base": Config(width=768, channels=1024, depth=12, blocks=16, vocabulary=32_000, length=2048, batch_size=2),
    "medium": Config(width=768, channels=1024, depth=12, blocks=16, vocabulary=32_000, length=1024, batch_size=1),
    "small": Config(width=768, channels=1024, depth=1, blocks=16, vocabulary=2_000, length=128, batch_size=1),
    "tiny": Config(width=32, channels=48, depth=2, blocks=4, vocabulary=64, length=16, batch_size=2),
}

# What is left of a sequence for the tokens after it: of each block the convolution's last inputs [N, B, TAPS - 1, C]
# and the recurrence's last state [N, B, C].
State = tuple[Tensor, Tensor]


def _linear(width: int, out: int, size: float = 1.0) -> nn.Linear:
    """A layer whose outputs have `size` times the size of its inputs."""
    layer = nn.Linear(width, out)
    nn.init.normal_(layer.weight, std=size * width**-0.5)
    nn.init.normal_(layer.bias, std=size * 0.1)
    return layer


class Projections(nn.Module):
    """Two linear maps [..., D] -> [..., C], each a matrix product; `fused`: one for both, with the same numbers."""

    def __init__(self, width: int, out: int, fused: bool) -> None:
        super().__init__()
        pair = [_linear(width, out) for _ in range(2)]
        if fused:
            both = nn.Linear(width, 2 * out, device="meta")  # draws no random numbers
            both.weight = nn.Parameter(torch.cat([layer.weight.detach() for layer in pair]))
            both.bias = nn.Parameter(torch.cat([layer.bias.detach() for layer in pair]))
            pair = [both]
        self.layers = nn.ModuleList(pair)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        outs = [layer(x) for layer in self.layers]
        first, second = outs if len(outs) == 2 else outs[0].chunk(2, dim=-1)
        return first, second


class Gates(nn.Module):
    """Two gates with block-diagonal weights, [B, T, C] -> [B, T, C] each, between 0 and 1; `fused` as above."""

    def __init__(self, channels: int, blocks: int, fused: bool) -> None:
        super().__init__()
        inner = channels // blocks
        weights = [torch.randn(blocks, inner, inner) * inner**-0.5 for _ in range(2)]
        biases = [torch.randn(blocks, inner) * 0.1 for _ in range(2)]
        if fused:
            weights, biases = [torch.cat(weights, dim=-1)], [torch.cat(biases, dim=-1)]
        self.weights = nn.ParameterList(weights)
        self.biases = nn.ParameterList(biases)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.unflatten(-1, (self.weights[0].shape[0], -1))  # [B, T, K, C/K]
        parameters = zip(self.weights, self.biases, strict=True)
        outs = [torch.einsum("btki,kij->btkj", x, weight) + bias for weight, bias in parameters]
        first, second = outs if len(outs) == 2 else outs[0].chunk(2, dim=-1)
        return first.flatten(2).float().sigmoid(), second.flatten(2).float().sigmoid()


class Recurrence(nn.Module):
    """The recurrent block: a gate's branch times that of convolution and RG-LRU, [B, T, D] -> [B, T, D]."""

    def __init__(self, config: Config, scan: str, fused: bool) -> None:
        super().__init__()
        channels = config.channels
        self.scan = scan
        self.branches = Projections(config.width, channels, fused)
        self.convolution = nn.Conv1d(channels, channels, TAPS, groups=channels)
        self.gates = Gates(channels, config.blocks, fused)
        decays = torch.empty(channels).uniform_(*DECAYS)
        self.decay = nn.Parameter((-decays.log() / SHARPNESS).expm1().log())  # softplus of it: -log(decay)
        self.out = _linear(channels, config.width, config.depth**-0.5)

    def forward(self, x: Tensor, before: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gate, x = self.branches(x)  # [B, T, C] each
        x = torch.cat((before.to(x.dtype), x), dim=1)  # [B, TAPS - 1 + T, C]
        before = x[:, 1 - TAPS :]
        x = self.convolution(x.transpose(1, 2)).transpose(1, 2)  # [B, T, C]
        # Decays lie so near to 1 that half precision would round them to it.
        forget, take = self.gates(x)
        log_decay = -SHARPNESS * F.softplus(self.decay.float()) * forget  # [B, T, C]
        inputs = torch.sqrt(-torch.expm1(2 * log_decay)) * take * x.float()  # keeps the state's size
        h = scans.scan(self.scan, log_decay.exp(), inputs, start)  # [B, T, C]
        return self.out(F.gelu(gate) * h.to(gate.dtype)), before, h[:, -1]


class Block(nn.Module):
    """A residual block: recurrence, then gated MLP, [B, T, D] -> [B, T, D]."""

    def __init__(self, config: Config, scan: str, fused: bool) -> None:
        super().__init__()
        width = config.width
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.recurrence = Recurrence(config, scan, fused)
        self.up = Projections(width, EXPANSION * width, fused=False)
        self.down = _linear(EXPANSION * width, width, config.depth**-0.5)

    def forward(self, x: Tensor, before: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, before, last = self.recurrence(self.norm1(x), before, start)
        x = x + y
        gate, y = self.up(self.norm2(x))  # [B, T, 3D] each
        return x + self.down(F.gelu(gate) * y), before, last


class Hawk(nn.Module):
    """Tokens [B, T] and the state before them -> logits of the next token [B, T, V], and the state after them.

    `last_only`: logits of what follows the last token alone, [B, 1, V]. `targets` [B, T]: in place of logits the sum of
    each token's cross-entropy, computed in `loss_chunks`.
    """

    def __init__(self, config: Config, scan: str, fused: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        nn.init.normal_(self.embedding.weight, std=config.width**-0.5)
        self.blocks = nn.ModuleList(Block(config, scan, fused) for _ in range(config.depth))
        self.norm = nn.RMSNorm(config.width, eps=1e-6)

    def forward(
        self,
        tokens: Tensor,
        befores: Tensor,
        starts: Tensor,
        last_only: bool,
        targets: Tensor | None = None,
        loss_chunks: int = 1,
    ) -> tuple[Tensor, State]:
        x = self.embedding(tokens)  # [B, T, D]
        states = []
        for block, before, start in zip(self.blocks, befores.unbind(), starts.unbind(), strict=True):
            x, before, last = block(x, before, start)
            states.append((before, last))
        x = self.norm(x[:, -1:] if last_only else x)
        befores, starts = (torch.stack(parts) for parts in zip(*states, strict=True))
        if targets is not None:
            loss = loss_in_chunks(x, self.embedding.weight, targets, loss_chunks, mean=False)
            return loss, (befores, starts)
        return F.linear(x, self.embedding.weight), (befores, starts)


def empty_state(config: Config, tokens: Tensor) -> State:
    """The state before the first token."""
    batch, channels = tokens.shape[0], config.channels
    zeros = torch.zeros(config.depth, batch, TAPS, channels, device=tokens.device)
    return zeros[:, :, 1:].clone(), zeros[:, :, 0].clone()


def prefill(
    config: Config, model: nn.Module, tokens: Tensor, chunk: int, calls: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of the token after the sequence [B, 1, V], and the state to go on from.

    `calls` gets the tokens of each call of the model, as that of the loss does.
    """
    state = empty_state(config, tokens)
    for part in tokens.split(chunk or tokens.shape[1], dim=1):
        calls.append(part.shape[1])
        logits, state = model(part, *state, True)
    return (logits, *state)


def next_token_loss(
    config: Config, model: nn.Module, batch: Batch, chunk: int, loss_chunks: int, calls: list[int]
) -> Tensor:
    """Mean cross-entropy of each next token. The gradient goes through all chunks.

    Of a chunk only the state after it is kept; the backward pass computes the rest again, chunk by chunk.
    """
    tokens, targets = batch  # [B, T] each
    if not chunk:
        calls.append(tokens.shape[1])
        state = empty_state(config, tokens)
        if loss_chunks > 1:
            total, _ = model(tokens, *state, False, targets, loss_chunks)
            return torch.div(total, targets.numel())
        logits, _ = model(tokens, *state, False)
        return F.cross_entropy(full(logits).flatten(0, 1), targets.flatten())

    def part_loss(part: Tensor, target: Tensor, befores: Tensor, starts: Tensor) -> tuple[Tensor, State]:
        calls.append(part.shape[1])
        logits, state = model(part, befores, starts, False)
        return F.cross_entropy(full(logits).flatten(0, 1), target.flatten(), reduction="sum"), state

    state, losses = empty_state(config, tokens), []
    for part, target in zip(tokens.split(chunk, dim=1), targets.split(chunk, dim=1), strict=True):
        loss, state = checkpoint(part_loss, part, target, *state, use_reentrant=False)
        losses.append(loss)
    mean: Tensor = torch.stack(losses).sum() / targets.numel()
    return mean


def _recurrences(context: ModelContext) -> list[Recurrence]:
    return [module for module in context.model.modules() if isinstance(module, Recurrence)]


def scan_evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether the blocks compute the recurrence so, and the operator of our own ran only where it should."""
    trace = recorded(context)
    if isinstance(trace, EvidenceResult):
        return trace
    ways = {module.scan for module in _recurrences(context)}
    ran = sum(OPERATOR in operator.name for operator in trace.operators)
    words = f"the blocks compute it as {' and '.join(sorted(ways))}; {OPERATOR} ran {times(ran)} in the step"
    return EvidenceResult(ways == {value} and (ran > 0) == (value == "native"), words)


def fused_evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether the branches and the gates of each block have one matrix or two."""
    found = {len(part) for each in _recurrences(context) for part in (each.branches.layers, each.gates.weights)}
    words = " or ".join(plural(each, "matrix", "matrices") for each in sorted(found))
    return EvidenceResult(found == {1 if value == "on" else 2}, f"each pair of projections is {words}")


def _can_run(way: str) -> Requirement:
    return Requirement(check=lambda scope: _lacking(way, scope))


def _lacking(way: str, scope: Scope) -> str | None:
    reason = scans.unavailable(way, scope.device.kind)
    return reason and f"cannot be computed here: {reason.rstrip('.')}"


SCAN = Toggle(
    name="scan",
    summary="How the gated recurrence is computed.",
    values=dict[Value, str](list(scans.WAYS.items())),
    stage=Stage.MODEL,
    requires={"torch": _can_run("torch"), "native": _can_run("native")},
    usage=lambda value, _: f'options["scan"] = "{value}"  # for the workload\'s build',
    evidence=scan_evidence,
    source="Martin and Cundy, Parallelizing Linear Recurrent Neural Nets Over Sequence Length (2018)",
)

FUSED_QKVZ = Toggle(
    name="fused_qkvz",
    summary="One matrix product for both branches of a recurrent block, and one for both of its gates.",
    values={"off": "a product for each", "on": "one product for two, with the same numbers"},
    stage=Stage.MODEL,
    usage=lambda value, _: f'options["fused_qkvz"] = "{value}"  # for the workload\'s build',
    evidence=fused_evidence,
    changes_problem=True,  # the parameters have other names
    source="De et al., Griffin (2024), figure 2",
)


def recurrent_lm(size: str = "base", chunk: int = 0, length: int | None = None) -> Workload:
    """The workload `recurrent_lm`: sequences of `length` random tokens; inference is the prefill.

    chunk: tokens that are worked through at once, 0: all; the baseline of `sequence_chunk`. Its other own toggles are
    `scan`, `fused_qkvz` and, where the sequence is not in chunks, `loss_chunks`.
    Raises GpubenchError for an unknown size, and for a chunk that does not divide the length.
    """
    config = choose("size of recurrent_lm", size, SIZES)
    tokens = config.length
    if length is not None:
        tokens = check_side("length", length, multiple=1, least=2, why="a recurrence needs a second step")
    if chunk < 0 or (chunk and tokens % chunk):
        raise GpubenchError(f"chunk is {chunk}, which does not divide the length {tokens}.", "0 is the whole sequence.")

    def build(options: Options) -> nn.Module:
        scans.prepare(options["scan"])
        return Hawk(config, options["scan"], options["fused_qkvz"] == "on")

    def inputs(batch_size: int, generator: torch.Generator) -> Batch:
        sequences = torch.randint(config.vocabulary, (batch_size, tokens + 1), generator=generator)
        return sequences[:, :-1].contiguous(), sequences[:, 1:].contiguous()

    calls: list[int] = []  # tokens that the model was called with in the last step, call by call

    def infer(model: nn.Module, batch: Batch, options: Options) -> tuple[Tensor, Tensor, Tensor]:
        calls.clear()
        return prefill(config, model, batch[0], options.get(SEQUENCE_CHUNK, chunk), calls)

    def loss(model: nn.Module, batch: Batch, options: Options = NOTHING) -> Tensor:
        calls.clear()
        at_once, loss_parts = options.get(SEQUENCE_CHUNK, chunk), options.get(LOSS_CHUNKS, 1)
        return next_token_loss(config, model, batch, at_once, loss_parts, calls)

    in_chunks = sequence_chunk(tokens, chunk, calls)
    of_the_loss = replace(
        loss_chunks("embedding.weight", tokens),
        idle_when={SEQUENCE_CHUNK: tuple(value for value in in_chunks.values if value)},
    )

    return Workload(
        name="recurrent_lm",
        item="token",
        batch_size=config.batch_size,
        build=build,
        inputs=inputs,
        infer=infer,
        loss=loss,
        items_per_sample=tokens,
        toggles=(SCAN, FUSED_QKVZ, in_chunks, of_the_loss),
    )
