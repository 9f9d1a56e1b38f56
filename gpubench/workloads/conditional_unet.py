"""The denoiser of latent diffusion: a 2-D U-Net that looks at the time and, by cross-attention, at a text.

Architecture: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (2022), figure 3 and
section 3.3, in the shape of Stable Diffusion 1: two blocks a level on the way down and three on the way up, all with
a transformer but for those of the lowest level, and one transformer between the two ways.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpubench.workloads.norms import norm_silu
from gpubench.workloads.vae import LATENT_CHANNELS

LONGEST = 10_000.0  # of the wavelengths that encode the time, over 2 pi
BRANCH = 0.4  # what a branch adds, where its input has size 1
FOUND, RANDOM = 2.5, 0.6  # what of the latents is found again behind a norm and a SiLU, and what is added to it
SILU, GEGLU = 0.3557, 0.4252  # mean squares of silu(x), and of x * gelu(y), for normal x and y


@dataclass(frozen=True)
class UNetConfig:
    """One size."""

    channels: tuple[int, ...]  # per level, from full resolution down
    blocks: int  # per level on the way down; one more on the way up
    heads: int
    groups: int  # of every GroupNorm
    text_width: int


class Residual(nn.Module):
    """Two times norm, SiLU, 3x3 convolution, the time added between: [B, C, H, W] and [B, T] -> [B, K, H, W]."""

    norm_silu = "torch"  # how the two are computed

    def __init__(self, channels: int, out: int, times: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.time = nn.Linear(times, out)
        self.norm2 = nn.GroupNorm(groups, out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.conv1(norm_silu(self.norm1, x, self.norm_silu)) + self.time(F.silu(time))[:, :, None, None]
        out: Tensor = self.conv2(norm_silu(self.norm2, y, self.norm_silu)) + self.shortcut(x)
        return out


class Attention(nn.Module):
    """Of pixels [B, N, C] to states [B, M, S]: themselves, or the text's. No biases but the last: -> [B, N, C]."""

    def __init__(self, channels: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(channels, channels, bias=False)
        self.key = nn.Linear(width, channels, bias=False)
        self.value = nn.Linear(width, channels, bias=False)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, states: Tensor) -> Tensor:
        parts = self.query(x), self.key(states), self.value(states)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)  # [B, H, N or M, D]
        out: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class Transformer(nn.Module):
    """Self-attention, cross-attention and GEGLU on all pixels, plus the input: [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.groups, channels, eps=1e-6)
        self.project = nn.Conv2d(channels, channels, 1)
        self.norm1 = nn.LayerNorm(channels)
        self.to_itself = Attention(channels, channels, config.heads)
        self.norm2 = nn.LayerNorm(channels)
        self.to_text = Attention(channels, config.text_width, config.heads)
        self.norm3 = nn.LayerNorm(channels)
        self.widen = nn.Linear(channels, 8 * channels)
        self.narrow = nn.Linear(4 * channels, channels)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        y = self.project(self.norm(x)).flatten(2).transpose(1, 2)  # [B, HW, C]
        z = self.norm1(y)
        y = y + self.to_itself(z, z)
        y = y + self.to_text(self.norm2(y), text)
        wide, gate = self.widen(self.norm3(y)).chunk(2, dim=-1)  # [B, HW, 4C] each
        y = y + self.narrow(wide * F.gelu(gate))
        out: Tensor = x + self.out(y.transpose(1, 2).reshape(x.shape))
        return out


class Block(nn.Module):
    """A residual block, and a transformer where `attends`: [B, C, H, W] -> [B, K, H, W]."""

    def __init__(self, channels: int, out: int, config: UNetConfig, *, attends: bool) -> None:
        super().__init__()
        self.residual = Residual(channels, out, 4 * config.channels[0], config.groups)
        self.transformer = Transformer(out, config) if attends else None

    def forward(self, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
        x = self.residual(x, time)
        return x if self.transformer is None else self.transformer(x, text)


class UNet(nn.Module):
    """Noisy latents [B, 4, H, W], timesteps [B] and text states [B, M, S] -> the noise in them, [B, 4, H, W]."""

    norm_silu = "torch"  # how the last two layers before the convolution are computed

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        first, lowest = config.channels[0], len(config.channels) - 1
        self.frequencies = first // 2
        self.time = nn.Sequential(nn.Linear(first, 4 * first), nn.SiLU(), nn.Linear(4 * first, 4 * first))
        self.first = nn.Conv2d(LATENT_CHANNELS, first, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        channels, kept = first, [first]  # `kept`: channels of what the way up takes from the way down
        for level, out in enumerate(config.channels):
            for _ in range(config.blocks):
                self.down.append(Block(channels, out, config, attends=level < lowest))
                channels = out
                kept.append(channels)
            if level < lowest:
                self.down.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))  # halves the side
                kept.append(channels)
        self.middle = Block(channels, channels, config, attends=True)
        self.last_middle = Residual(channels, channels, 4 * first, config.groups)
        for level, out in reversed(list(enumerate(config.channels))):
            for _ in range(config.blocks + 1):
                self.up.append(Block(channels + kept.pop(), out, config, attends=level < lowest))
                channels = out
            if level:
                self.up.append(nn.Conv2d(channels, channels, 3, padding=1))  # after the side is doubled
        self.norm = nn.GroupNorm(config.groups, first)
        self.last = nn.Conv2d(first, LATENT_CHANNELS, 3, padding=1)
        self._initialise()

    def _initialise(self) -> None:
        """Each layer keeps the size of its input, branches add a part of it, and the noise has size 1."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                _scale(module, 1.0)
        for module in self.modules():  # a part comes after what it is in, which knows better
            if isinstance(module, Residual):
                _scale(module.time, 1 / SILU)  # behind two of them
                _scale(module.conv1, SILU**-0.5)
                _scale(module.conv2, BRANCH * SILU**-0.5)
            if isinstance(module, Transformer):
                _scale(module.out, BRANCH)
                _scale(module.narrow, GEGLU**-0.5)
            if isinstance(module, Attention):
                # Each pixel looks at a few others, as in trained ones. The mean of all would be nearly zero.
                for part in (module.query, module.key):
                    _scale(part, math.sqrt(2))
        self._find_noise()

    @torch.no_grad()
    def _find_noise(self) -> None:
        """Makes the noise that is found about what came in, as in a trained model, since that is noise mostly.

        Else a denoising loop would end with latents 15 times as large as those it began with.
        """
        block = self.up[-1]
        assert isinstance(block, Block)
        shortcut = block.residual.shortcut  # on whose last inputs what came in arrives again
        assert isinstance(shortcut, nn.Conv2d)
        came = slice(-self.first.out_channels, None)
        for part in (self.first.weight[..., 1, 1], shortcut.weight[:, came]):
            part *= 3
        _scale(self.last, RANDOM)
        way = shortcut.weight[:, came, 0, 0] @ self.first.weight[..., 1, 1]  # [C, 4]
        self.last.weight[..., 1, 1] += FOUND * torch.linalg.pinv(way)

    def forward(self, x: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        time = self.time(waves(timesteps, self.frequencies).to(self.first.weight.dtype))  # [B, 4 C]
        x = self.first(x)
        kept = [x]
        for layer in self.down:
            x = layer(x, time, text) if isinstance(layer, Block) else layer(x)
            kept.append(x)
        x = self.last_middle(self.middle(x, time, text), time)
        for layer in self.up:
            if isinstance(layer, Block):
                x = layer(torch.cat((x, kept.pop()), dim=1), time, text)
            else:
                x = layer(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        noise: Tensor = self.last(norm_silu(self.norm, x, self.norm_silu))
        return noise


def waves(timesteps: Tensor, frequencies: int) -> Tensor:
    """Cosines and sines of the timesteps [B], in fp32 whatever the model's dtype: [B, 2 * frequencies]."""
    rates = torch.exp(torch.arange(frequencies, device=timesteps.device) * (-math.log(LONGEST) / frequencies))
    angles = timesteps[:, None].float() * rates  # [B, frequencies]
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def _scale(layer: nn.Linear | nn.Conv2d, size: float) -> None:
    """Random weights whose outputs have `size` times the size of their inputs."""
    nn.init.normal_(layer.weight, std=size * layer.weight[0].numel() ** -0.5)
    if layer.bias is not None:
        nn.init.normal_(layer.bias, std=0.1 * size)
