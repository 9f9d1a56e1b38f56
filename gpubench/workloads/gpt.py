"""A decoder-only language model: training on the next token, prefill of a prompt, generation with a static cache.

Architecture: Radford et al., "Language Models are Unsupervised Multitask Learners" (GPT-2, 2019), table 2: layer norm
before each part, GELU by tanh, learned positions, and the token embedding once more as the last layer.
`positions=rotary` takes those of Su et al., "RoFormer" (2021) instead, and `kv_heads` lets several query heads share a
key and a value (Ainslie et al., "GQA", 2023). No dropout, as models of today are trained.
Training clips the gradients and lets the learning rate follow a cosine.

"base" is the smallest GPT-2: 124,439,808 parameters, as its published checkpoint has. A forward pass over 1024 tokens
is 291.6 GFLOP (nanoGPT's transformer_sizing.ipynb: 291,648,307,200), three times that with the backward pass.

Shares of the time on a CPU, in percent, by torch's profiler ("base" with one sequence, whose optimizer takes a larger
share than with four, and 16 new tokens):

|                    | matrix products | attention | norms | element-wise and the rest |
| ------------------ | --------------- | --------- | ----- | ------------------------- |
| prefill, base      | 67              | 16        | 1     | 16                        |
| prefill, small     | 61              | 15        | 2     | 22                        |
| generate, base     | 70              | 16        | 1     | 13                        |
| generate, small    | 64              | 14        | 3     | 19                        |
| training, base     | 60              | 16        | 1     | 23                        |
| training, small    | 55              | 9         | 0     | 36                        |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpubench.errors import GpubenchError
from gpubench.workloads import mixed_lengths
from gpubench.workloads.building import NOTHING
from gpubench.workloads.chunking import LOSS_CHUNKS, full, loss_chunks, loss_in_chunks
from gpubench.workloads.optimizing import ALONE, Optimizer
from gpubench.workloads.parameters import choose
from gpubench.workloads.workload import Batch, Options, Workload

ROTARY_BASE = 10_000.0  # the longest wavelength is 2 pi times that many tokens


@dataclass(frozen=True)
class Config:
    """One size. The prompt and the tokens generated after it fill `sequence`."""

    width: int
    layers: int
    heads: int
    vocabulary: int
    context: int  # positions that the model knows
    sequence: int  # tokens of one element of the batch
    new_tokens: int  # of them, generated with task=generate
    batch_size: int
    mixed: int  # the batch size of lengths=mixed, whose sequences are a quarter as long on average
    kv_heads: int  # keys and values; fewer than `heads`: each is shared by as many query heads
    rotary: bool = False


def _gpt2(batch_size: int, mixed: int) -> Config:
    return Config(768, 12, 12, 50_257, 1024, 1024, new_tokens=128, batch_size=batch_size, mixed=mixed, kv_heads=12)


# Training "base" in fp32 takes some 6.4 GiB: 1.9 for weights, gradients and AdamW's averages, and for each sequence 0.8
# of what autograd keeps and, at the peak, two times 0.2 of scores. With lengths=mixed padding may nearly double them.
SIZES = {
    "huge": _gpt2(batch_size=40, mixed=80),
    "xlarge": _gpt2(batch_size=20, mixed=40),
    "large": _gpt2(batch_size=10, mixed=20),
    "base": _gpt2(batch_size=4, mixed=16),
    "medium": _gpt2(batch_size=2, mixed=8),
    "small": Config(384, 2, 6, 4096, 384, sequence=384, new_tokens=16, batch_size=1, mixed=16, kv_heads=6),
    "tiny": Config(32, 2, 2, 256, 32, sequence=32, new_tokens=8, batch_size=2, mixed=16, kv_heads=2),
}


class Attention(nn.Module):
    """Causal self-attention with H query heads and K heads of keys and values: [B, T, C] -> [B, T, C]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.size = config.width // config.heads  # D
        self.project = nn.Linear(config.width, (config.heads + 2 * config.kv_heads) * self.size)
        self.out = nn.Linear(config.width, config.width)
        # The static cache, [B, K, S, D] each, from `reset_cache` on. It is emptied before each use, so it is no buffer:
        # a step changes no part of the model.
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor] | None, position: Tensor | None, visible: Tensor | None
    ) -> Tensor:
        """`turn`: cosine and sine of rotary positions [T, D/2]. The rest is as in `GPT.forward`."""
        sizes = [count * self.size for count in (self.heads, self.kv_heads, self.kv_heads)]
        parts = self.project(x).split(sizes, dim=-1)
        q, k, v = (part.unflatten(-1, (-1, self.size)).transpose(1, 2) for part in parts)  # [B, H or K, T, D]
        if turn is not None:
            q, k = rotate(q, *turn), rotate(k, *turn)
        if position is not None and self.keys is not None and self.values is not None:
            self.keys.index_copy_(2, position, k)
            self.values.index_copy_(2, position, v)
            if visible is not None:
                k, v = self.keys, self.values
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=visible, is_causal=visible is None, enable_gqa=self.kv_heads != self.heads
        )
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out

    def reset_cache(self, batch_size: int, length: int, like: Tensor) -> None:
        """An empty cache for `length` tokens, in dtype and on device of `like`; in its old memory if that fits."""
        shape = (batch_size, self.kv_heads, length, self.size)
        for name in ("keys", "values"):
            kept = getattr(self, name)
            if kept is not None and (kept.shape, kept.dtype, kept.device) == (shape, like.dtype, like.device):
                kept.zero_()
            else:
                empty = like.new_zeros(shape)
                torch._dynamo.mark_static_address(empty)  # else CUDA graphs leave out what writes to it
                setattr(self, name, empty)


class Block(nn.Module):
    """Attention and a perceptron of four times the width, each after a norm and added to its input."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(config.width)
        self.widen = nn.Linear(config.width, 4 * config.width)
        self.narrow = nn.Linear(4 * config.width, config.width)

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor] | None, position: Tensor | None, visible: Tensor | None
    ) -> Tensor:
        x = x + self.attention(self.norm1(x), turn, position, visible)
        out: Tensor = x + self.narrow(F.gelu(self.widen(self.norm2(x)), approximate="tanh"))
        return out


class GPT(nn.Module):
    """Token ids [B, T] -> scores of the token after each, [B, T, V]."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.positions = None if config.rotary else nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        if config.rotary:
            size = config.width // config.heads
            rates = ROTARY_BASE ** -(torch.arange(0, size, 2) / size)  # [D/2]
            angles = torch.outer(torch.arange(config.context), rates)  # [context, D/2]
            self.register_buffer("cosine", angles.cos(), persistent=False)
            self.register_buffer("sine", angles.sin(), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        # The token embedding is the last layer too: with a fourth root in it and the last norm, scores are of size 1.
        # All branches together add as much to the residual stream as the embedding has, so that the last token's own
        # score leads clearly: where two lead by turns, rounding decides, and texts of two precisions part ways.
        size = self.norm.normalized_shape[0] ** -0.25
        for embedding, share in ((self.tokens, 1.0), (self.positions, 0.5)):
            if embedding is not None:
                nn.init.normal_(embedding.weight, std=share * size)
        nn.init.constant_(self.norm.weight, size)
        branch = size / math.sqrt(2 * len(self.blocks))
        for block in self.blocks:
            assert isinstance(block, Block)
            attention = block.attention
            parts = ((attention.project, 1.0), (attention.out, branch), (block.widen, 1.0), (block.narrow, branch))
            for linear, scale in parts:
                nn.init.normal_(linear.weight, std=scale / math.sqrt(linear.in_features))
                nn.init.normal_(linear.bias, std=0.1 * scale)
            # Each token looks at a few others, as trained ones do. The mean of all would be nearly zero.
            with torch.no_grad():
                attention.project.weight[: (attention.heads + attention.kv_heads) * attention.size] *= math.sqrt(2)

    def forward(
        self,
        tokens: Tensor,
        position: Tensor | None = None,
        visible: Tensor | None = None,
        last: Tensor | None = None,
        following: Tensor | None = None,
        loss_chunks: int = 1,
    ) -> Tensor:
        """Scores of the token after each; with a cache, of the token after the last.

        position: [T], where in the cache to keep keys and values; None: nowhere.
        visible: [T, S], which of the cache's places each token sees; None: no cache, but the tokens up to itself.
        last: [B], which token of each sequence is its last one, where padding follows it; None: that of [B, T].
        following: [B, T], the tokens after each: the mean loss comes back instead, computed in `loss_chunks`.
        """
        where = torch.arange(tokens.shape[1], device=tokens.device) if position is None else position
        x: Tensor = self.tokens(tokens)  # [B, T, C]
        if self.positions is not None:
            x = x + self.positions(where)
        turn = (self.cosine[where], self.sine[where]) if self.positions is None else None
        for block in self.blocks:
            x = block(x, turn, position, visible)
        if position is not None:
            x = x[:, -1:] if last is None else x.gather(1, last[:, None, None].expand(-1, 1, x.shape[-1]))
        x = self.norm(x)
        if following is not None:
            return loss_in_chunks(x, self.tokens.weight, following, loss_chunks)
        return F.linear(x, self.tokens.weight)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turns each pair (i, i + D/2) of [B, H, T, D] by its token's angle; `cosine` and `sine` are [T, D/2]."""
    one, other = x.chunk(2, dim=-1)
    return torch.cat((one * cosine - other * sine, one * sine + other * cosine), dim=-1).type_as(x)


def reset_cache(model: nn.Module, batch_size: int, length: int) -> None:
    """Empties the cache of every layer, so that a step keeps nothing of the one before.

    Its memory stays, since a CUDA graph needs it at one address. Its dtype is the one that keys are computed in.
    """
    weight = model.get_parameter("tokens.weight")
    kind = weight.device.type
    cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)  # not on the meta device
    like = weight.new_empty(0, dtype=torch.get_autocast_dtype(kind) if cast else None)
    for part in model.modules():
        if isinstance(part, Attention):
            part.reset_cache(batch_size, length, like)


def prefill(model: nn.Module, prompt: Tensor, length: int, last: Tensor | None = None) -> Tensor:
    """Scores of the token after the prompt [B, T]: [B, 1, V]. The cache has room for `length` tokens.

    last: as in `GPT.forward`.
    """
    reset_cache(model, len(prompt), length)
    position = torch.arange(prompt.shape[1], device=prompt.device)
    scores: Tensor = model(prompt, position) if last is None else model(prompt, position, None, last)
    return scores


def generate(model: nn.Module, prompt: Tensor, new_tokens: int) -> dict[str, Tensor]:
    """The likeliest token after the prompt [B, T], and so on: `tokens` [B, N], and the scores of the last, [B, V]."""
    length = prompt.shape[1]
    place = torch.arange(length + new_tokens, device=prompt.device)  # [S]
    visible = place <= place[length:, None]  # [N, S]
    scores = prefill(model, prompt, length + new_tokens)
    tokens = [scores.argmax(dim=-1)]
    for index in range(new_tokens - 1):
        scores = model(tokens[-1], place[length + index : length + index + 1], visible[index : index + 1])
        tokens.append(scores.argmax(dim=-1))
    return {"tokens": torch.cat(tokens, dim=1), "scores": scores[:, 0]}


def _loss(model: nn.Module, batch: Batch, options: Options = NOTHING) -> Tensor:
    tokens, following = batch
    chunks = options.get(LOSS_CHUNKS, 1)
    if chunks > 1:
        loss: Tensor = model(tokens, following=following, loss_chunks=chunks)
        return loss
    scores = full(model(tokens))
    return F.cross_entropy(scores.flatten(0, 1), following.flatten())


def cosine(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate along a cosine down to a tenth, over 600,000 steps; the warm-up before it is left out."""
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=600_000, eta_min=LEARNING_RATE / 10)


# As nanoGPT trains GPT-2 (config/train_gpt2.py), but for weight decay, which is on all parameters here.
LEARNING_RATE = 6e-4
OPTIMIZER = Optimizer(
    settings={"lr": LEARNING_RATE, "betas": (0.9, 0.95), "weight_decay": 0.1}, clip=1.0, schedule=cosine
)
TASKS: dict[str, Callable[[Config], Callable[[nn.Module, Batch, Options], Tensor | dict[str, Tensor]]]] = {
    "prefill": lambda config: lambda model, batch, options: prefill(model, batch[0], config.sequence)[:, 0],
    "generate": lambda config: lambda model, batch, options: generate(model, batch[0], config.new_tokens),
}
POSITIONS = {"learned": False, "rotary": True}  # whether they are rotary
LENGTHS = {"same": False, "mixed": True}  # whether they differ


def gpt(
    size: str = "base",
    task: str = "prefill",
    positions: str = "learned",
    kv_heads: int | None = None,
    sequence: int | None = None,
    new_tokens: int | None = None,
    lengths: str = "same",
) -> Workload:
    """The workload `gpt`: sequences of random tokens, training is with task=prefill only.

    Inference computes the scores after a prompt of `sequence` tokens, or reads a shorter prompt and generates the last
    `new_tokens` of them, which are then the items. With lengths=mixed sequences have from 1 to nearly half of
    `sequence` tokens, and the toggle `batching` says which of them go through the model together; else `loss_chunks` is
    its own toggle. Raises GpubenchError for an unknown size, task or kind of positions or lengths, for `kv_heads` that
    do not divide the heads, and for lengths that do not fit into the model's context.
    """
    config = choose("size of gpt", size, SIZES)
    infer, mixed = choose("task of gpt", task, TASKS), choose("kind of lengths of gpt", lengths, LENGTHS)
    config = replace(
        config,
        rotary=choose("kind of positions of gpt", positions, POSITIONS),
        kv_heads=config.heads if kv_heads is None else kv_heads,
        sequence=config.sequence if sequence is None else sequence,
        new_tokens=config.new_tokens if new_tokens is None else new_tokens,
    )
    if not 1 <= config.kv_heads <= config.heads or config.heads % config.kv_heads:
        dividing = [str(count) for count in range(1, config.heads + 1) if not config.heads % count]
        raise GpubenchError(f"kv_heads is {config.kv_heads}.", f"It must divide the heads: {', '.join(dividing)}.")
    if not 2 <= config.sequence <= config.context:
        raise GpubenchError(f"sequence is {config.sequence}.", f"It must be from 2 to {config.context} tokens.")
    if task == "generate" and not 1 <= config.new_tokens < config.sequence:
        most = config.sequence - 1
        raise GpubenchError(f"new_tokens is {config.new_tokens}.", f"It must be from 1 to {most}: a prompt needs one.")
    passes: mixed_lengths.Passes = []
    if mixed:
        if task != "prefill":
            raise GpubenchError("lengths=mixed is for task=prefill.", "Leave one of the two out.")
        return _mixed(config, passes)

    def inputs(batch_size: int, generator: torch.Generator) -> Batch:
        tokens = torch.randint(config.vocabulary, (batch_size, config.sequence + 1), generator=generator)
        if task == "generate":
            return (tokens[:, : config.sequence - config.new_tokens].clone(),)
        return tokens[:, :-1].clone(), tokens[:, 1:].clone()

    return Workload(
        name="gpt" if task == "prefill" else f"gpt-{task}",
        item="token",
        batch_size=config.batch_size,
        build=lambda: GPT(config),
        inputs=inputs,
        infer=infer(config),
        loss=_loss if task == "prefill" else None,
        optimizers={ALONE: OPTIMIZER},
        items_per_sample=config.sequence if task == "prefill" else config.new_tokens,
        toggles=(mixed_lengths.toggle(passes, mixed=False), loss_chunks("tokens.weight", config.sequence)),
    )


def _mixed(config: Config, passes: mixed_lengths.Passes) -> Workload:
    """As `gpt`, with sequences of different lengths."""
    mean = max(1, config.sequence // 4)

    def step(model: nn.Module, tokens: Tensor, last: Tensor) -> Tensor:
        return prefill(model, tokens, config.sequence, last)[:, 0]

    def infer(model: nn.Module, batch: Batch, options: Options) -> Tensor:
        return mixed_lengths.prefill(step, model, batch, options[mixed_lengths.BATCHING], passes)

    def loss(model: nn.Module, batch: Batch, options: Options) -> Tensor:
        return mixed_lengths.loss(model, batch, options[mixed_lengths.BATCHING], passes)

    return Workload(
        name="gpt",
        item="token",
        batch_size=config.mixed,
        build=lambda: GPT(config),
        inputs=lambda count, generator: mixed_lengths.sequences(count, mean, config.vocabulary, generator),
        infer=infer,
        loss=loss,
        optimizers={ALONE: OPTIMIZER},
        items_per_sample=mean,
        toggles=(mixed_lengths.toggle(passes, mixed=True),),
    )
