"""The transformer of the workload `dit`: velocity of noisy image tokens, given source image, text and time.

Architecture: the two-stream block of Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image
Synthesis" (Stable Diffusion 3, 2024), figure 2b, as Wu et al., "Qwen-Image Technical Report" (2025), section 2.4, has
it: text and image have their own weights and meet in one attention over all tokens, queries and keys are normalised,
rotary positions have an axis for the image besides height and width, and time alone modulates. As in Stable Diffusion 3
the last block leaves the text as it is, since nothing reads it there.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpubench.workloads.gpt import rotate

ROTARY_BASE = 10_000.0
WAVES = 128  # frequencies that the time is given in
EPS = 1e-6  # of all norms
# Queries and keys are normalised to this size: each token looks at a few others then, as in trained models. The mean of
# all would be nearly zero, and neither text nor source would show in the output.
SHARPNESS = 1.75


class Linear(nn.Linear):
    """A layer whose outputs have `size` times the size of its inputs.

    It is initialised once, not by torch and then again: a large model takes ten seconds for it.
    """

    def __init__(self, width: int, out: int, *, bias: bool = True, size: float = 1.0) -> None:
        self.size = size
        super().__init__(width, out, bias)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.size * self.in_features**-0.5)
        if self.bias is not None:
            nn.init.normal_(self.bias, std=self.size * 0.1)


class Adapted(nn.Module):
    """A linear layer and its low-rank adapter (Hu et al., "LoRA", 2021), whose second half does not begin at zero."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.adapter = nn.Sequential(
            Linear(base.in_features, rank, bias=False), Linear(rank, base.out_features, bias=False, size=0.1)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self.adapter(x)
        return out


def projection(width: int, out: int, rank: int, size: float = 1.0) -> nn.Module:
    """A projection of attention; with an adapter if `rank` is not zero."""
    base = Linear(width, out, size=size)
    return Adapted(base, rank) if rank else base


class Modulation(nn.Module):
    """What time does to a stream, [B, C] -> `shifts` shifts, as many scales, and `gates` gates, [B, 1, C] each.

    Scales and gates are around 1. Published models begin training with gates of zero, with which all errors within a
    block would leave the output as it is.
    """

    def __init__(self, width: int, shifts: int, gates: int) -> None:
        super().__init__()
        self.parts = 2 * shifts + gates
        self.linear = Linear(width, self.parts * width)
        with torch.no_grad():
            self.linear.bias[shifts * width :] += 1

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        parts: Tensor = self.linear(condition)
        return parts.unsqueeze(1).chunk(self.parts, dim=-1)


class Before(nn.Module):
    """Of one stream, what comes before attention: [B, T, C] -> queries, keys and values [B, H, T, D]."""

    def __init__(self, width: int, head: int, rank: int) -> None:
        super().__init__()
        self.head = head
        self.modulation = Modulation(width, shifts=1, gates=0)
        self.norm = nn.LayerNorm(width, eps=EPS, elementwise_affine=False)
        self.project = projection(width, 3 * width, rank)
        self.norm_q, self.norm_k = (nn.RMSNorm(head, eps=EPS) for _ in range(2))
        for norm in (self.norm_q, self.norm_k):
            nn.init.constant_(norm.weight, SHARPNESS)

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shift, scale = self.modulation(condition)
        q, k, v = self.project(self.norm(x) * scale + shift).unflatten(-1, (3, -1, self.head)).permute(2, 0, 3, 1, 4)
        return self.norm_q(q), self.norm_k(k), v


class After(nn.Module):
    """Of one stream, what comes after attention, and the perceptron: [B, T, C] and what it attended to -> [B, T, C]."""

    def __init__(self, width: int, rank: int, size: float) -> None:
        super().__init__()
        self.modulation = Modulation(width, shifts=1, gates=2)
        self.out = projection(width, width, rank, 2 * size)  # a mean of a few values is smaller than each of them
        self.norm = nn.LayerNorm(width, eps=EPS, elementwise_affine=False)
        self.widen = Linear(width, 4 * width)
        self.narrow = Linear(4 * width, width, size=size)

    def forward(self, x: Tensor, attended: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate, other_gate = self.modulation(condition)
        x = x + gate * self.out(attended)
        y = self.widen(self.norm(x) * scale + shift)
        out: Tensor = x + other_gate * self.narrow(F.gelu(y, approximate="tanh"))
        return out


class Block(nn.Module):
    """Joint attention of two streams, [B, L, C] and [B, N, C]; the last block returns no text."""

    def __init__(self, width: int, head: int, rank: int, size: float, is_last: bool) -> None:
        super().__init__()
        self.text_before, self.image_before = Before(width, head, rank), Before(width, head, rank)
        self.text_after = None if is_last else After(width, rank, size)
        self.image_after = After(width, rank, size)

    def forward(
        self, text: Tensor, image: Tensor, condition: Tensor, cosine: Tensor, sine: Tensor
    ) -> tuple[Tensor, Tensor]:
        streams = zip(self.text_before(text, condition), self.image_before(image, condition), strict=True)
        q, k, v = (torch.cat(both, dim=2) for both in streams)  # [B, H, L + N, D]
        y = F.scaled_dot_product_attention(rotate(q, cosine, sine), rotate(k, cosine, sine), v)
        y = y.transpose(1, 2).flatten(2)  # [B, L + N, C]
        length = text.shape[1]
        if self.text_after is not None:
            text = self.text_after(text, y[:, :length], condition)
        return text, self.image_after(image, y[:, length:], condition)


class Transformer(nn.Module):
    """Noisy and source tokens [B, N, P], text [B, L, E] and time [B] from 0 to 1 -> velocity [B, N, P].

    side: tokens along a side of the image, N = side^2.
    rank: of the adapters, which are then all that is trained; 0: none, and everything is.
    """

    cosine: Tensor  # [L + 2N, D/2]
    sine: Tensor

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        head: int,  # size of a head; width / head of them
        patch: int,  # values of an image token
        text: int,  # width of the text encoder
        length: int,  # text tokens
        side: int,
        rank: int = 0,
    ) -> None:
        super().__init__()
        self.time_in = nn.Sequential(Linear(2 * WAVES, width), nn.SiLU(), Linear(width, width))
        self.text_norm = nn.RMSNorm(text, eps=EPS)
        self.text_in = Linear(text, width)
        self.image_in = Linear(patch, width)
        # All branches together add as much to a stream as it began with.
        size = 1 / math.sqrt(2 * depth)
        self.blocks = nn.ModuleList(Block(width, head, rank, size, index == depth - 1) for index in range(depth))
        self.modulation = Modulation(width, shifts=1, gates=0)
        self.norm = nn.LayerNorm(width, eps=EPS, elementwise_affine=False)
        self.out = Linear(width, patch)
        angles = rotary_angles(places(side, length), head)
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)
        if rank:
            self.requires_grad_(False)
            for module in self.modules():
                if isinstance(module, Adapted):
                    module.adapter.requires_grad_(True)

    def forward(self, noisy: Tensor, source: Tensor, text: Tensor, time: Tensor) -> Tensor:
        condition = F.silu(self.time_in(waves(time).type_as(noisy)))  # [B, C]
        words = self.text_in(self.text_norm(text))  # [B, L, C]
        image = self.image_in(torch.cat((noisy, source), dim=1))  # [B, 2N, C]
        for block in self.blocks:
            words, image = block(words, image, condition, self.cosine, self.sine)
        shift, scale = self.modulation(condition)
        velocity: Tensor = self.out(self.norm(image[:, : noisy.shape[1]]) * scale + shift)
        return velocity


def waves(time: Tensor) -> Tensor:
    """Cosines and sines of the time in thousandths, at frequencies from 1 down to nearly 1/10,000: [B] -> [B, 256]."""
    rates = 10_000.0 ** -(torch.arange(WAVES, device=time.device) / WAVES)
    angles = 1000 * time.float().unsqueeze(-1) * rates
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def places(side: int, length: int) -> Tensor:
    """Which image, row and column each token is at: [L + 2N, 3] for text, noisy image and source image.

    Rows and columns count from the middle, and the text goes on along the diagonal behind the images' corner.
    """
    across = torch.arange(side) - side // 2
    images = torch.cartesian_prod(torch.arange(2), across, across)
    text = (side - side // 2) + torch.arange(length)
    return torch.cat((text.unsqueeze(-1).expand(-1, 3), images))


def rotary_angles(at: Tensor, head: int) -> Tensor:
    """By how much each pair of a head's channels is turned at each place: [T, 3] -> [T, D/2].

    An eighth of the channels tells which image, the others are shared by rows and columns: 16, 56 and 56 of 128.
    """
    sizes = (head // 8, 7 * head // 16, 7 * head // 16)
    rates = [ROTARY_BASE ** -(torch.arange(0, size, 2) / size) for size in sizes]
    return torch.cat([torch.outer(axis, each) for axis, each in zip(at.T, rates, strict=True)], dim=-1)
