"""The layers of the workload `video_vae`: Wan's causal encoder and decoder, with a memory of the frames before.

Architecture: Wan Team, "Wan: Open and Advanced Large-Scale Video Generative Models" (2025), section 4.1, in the shape
of its published code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LATENT_CHANNELS = 16


@dataclass(frozen=True)
class Config:
    """One size."""

    channels: tuple[int, int, int, int]  # per level, from full resolution down
    blocks: int  # residual blocks per level of the encoder, beside the two in the middle
    decoder_blocks: int  # residual blocks per level of the decoder
    resolution: int  # pixels
    frames: int  # 1 + 4N
    tiles: tuple[int, ...]  # pixels
    overlap: int  # pixels
    batch_size: int = 1  # videos


class Memory:
    """The last frames that each layer over time has seen, layer by layer, of a video that comes chunk by chunk."""

    def __init__(self) -> None:
        self.is_first = True  # this chunk is the first frame
        self.before: list[Tensor] = []  # from the chunk before, of the layers to come
        self.kept: list[Tensor] = []  # from this chunk

    def recall(self) -> Tensor:
        """The frames that the layer kept of the chunk before, [B, C, count, H, W]."""
        return self.before.pop(0)

    def keep(self, x: Tensor, count: int) -> None:
        """Keeps the last frames of [B, C, T, H, W], copied, since a view of them would hold all."""
        self.kept.append(x[:, :, -count:].clone())

    def turn(self) -> None:
        """The next chunk begins. Copies once more, as a CUDA graph overwrites its outputs when it runs again."""
        self.is_first = False
        while self.kept:
            self.before.append(self.kept.pop(0).clone())


class CausalConv3d(nn.Conv3d):
    """Zeros around a frame, and before the first one: [B, C, T, H, W] -> [B, K, T, H, W]."""

    def __init__(self, channels: int, out: int, depth: int, side: int) -> None:
        super().__init__(channels, out, (depth, side, side), padding=(0, side // 2, side // 2))

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        past = self.kernel_size[0] - 1
        if past:
            if memory is None or memory.is_first:
                x = F.pad(x, (0, 0, 0, 0, past, 0))
            else:
                x = torch.cat((memory.recall(), x), dim=2)
            if memory is not None:
                memory.keep(x, past)
        return super().forward(x)


class Norm(nn.Module):
    """RMS norm over the channels of each pixel: [B, C, T, H, W] -> [B, C, T, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.gamma * math.sqrt(len(self.gamma))
        y: Tensor = F.normalize(x, dim=1) * scale.view(-1, 1, 1, 1)
        return y


class Residual(nn.Module):
    """Two times norm, SiLU, 3x3x3 convolution, plus the input: [B, C, T, H, W] -> [B, K, T, H, W]."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm1 = Norm(channels)
        self.conv1 = CausalConv3d(channels, out, 3, 3)
        self.norm2 = Norm(out)
        self.conv2 = CausalConv3d(out, out, 3, 3)
        self.shortcut = nn.Identity() if channels == out else CausalConv3d(channels, out, 1, 1)

    def forward(self, x: Tensor, memory: Memory | None) -> Tensor:
        y: Tensor = self.conv1(F.silu(self.norm1(x)), memory)
        y = self.conv2(F.silu(self.norm2(y)), memory)
        out: Tensor = y + self.shortcut(x)
        return out


class Attention(nn.Module):
    """Single-head self-attention over the pixels of each frame, plus the input: [B, C, T, H, W] -> [B, C, T, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = Norm(channels)
        self.project = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, memory: Memory | None) -> Tensor:
        y = self.norm(x).permute(0, 2, 3, 4, 1).flatten(2, 3)  # [B, T, HW, C]: frames are heads to attention
        q, k, v = self.project(y).chunk(3, dim=-1)
        y = self.out(F.scaled_dot_product_attention(q, k, v))
        out: Tensor = x + y.permute(0, 3, 1, 2).reshape(x.shape)
        return out


class Downsample(nn.Module):
    """Halves the sides, padded on the right and bottom only, and with `time` the frames after the first.

    [B, C, T, H, W] -> [B, C, 1 + (T - 1) / 2 or T, H / 2, W / 2]
    """

    def __init__(self, channels: int, time: bool) -> None:
        super().__init__()
        self.space = nn.Conv3d(channels, channels, (1, 3, 3), stride=(1, 2, 2))
        self.time = nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1)) if time else None

    def forward(self, x: Tensor, memory: Memory | None) -> Tensor:
        x = self.space(F.pad(x, (0, 1, 0, 1)))
        if self.time is None:
            return x
        if memory is None:
            return torch.cat((x[:, :, :1], self.time(x)), dim=2)
        if memory.is_first:
            memory.keep(x, 1)
            return x
        joined = torch.cat((memory.recall(), x), dim=2)
        memory.keep(x, 1)
        y: Tensor = self.time(joined)
        return y


class Upsample(nn.Module):
    """With `time` two frames of each after the first; twice the sides and half the channels.

    [B, C, T, H, W] -> [B, C / 2, 1 + (T - 1) * 2 or T, 2H, 2W]
    """

    def __init__(self, channels: int, out: int, time: bool) -> None:
        super().__init__()
        self.time = CausalConv3d(channels, 2 * channels, 3, 1) if time else None
        self.space = CausalConv3d(channels, out, 1, 3)

    def forward(self, x: Tensor, memory: Memory | None) -> Tensor:
        if self.time is not None:
            if memory is None:
                x = torch.cat((x[:, :, :1], self._double(x[:, :, 1:], None)), dim=2)
            elif memory.is_first:
                memory.keep(torch.zeros_like(x).expand(-1, -1, 2, -1, -1), 2)  # nothing comes before the second frame
            else:
                x = self._double(x, memory)
        y: Tensor = self.space(F.interpolate(x, scale_factor=(1.0, 2.0, 2.0), mode="nearest"))
        return y

    def _double(self, x: Tensor, memory: Memory | None) -> Tensor:
        """[B, C, T, H, W] -> [B, C, 2T, H, W]"""
        assert self.time is not None
        pairs: Tensor = self.time(x, memory).unflatten(1, (2, -1))  # [B, 2, C, T, H, W]
        return pairs.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)


class Head(nn.Module):
    """Norm, SiLU and a convolution: [B, C, T, H, W] -> [B, K, T, H, W]."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm = Norm(channels)
        self.conv = CausalConv3d(channels, out, 3, 3)

    def forward(self, x: Tensor, memory: Memory | None) -> Tensor:
        y: Tensor = self.conv(F.silu(self.norm(x)), memory)
        return y


class Layers(nn.ModuleList):
    """Layers one after the other, which all get the memory."""

    def run(self, x: Tensor, memory: Memory | None) -> Tensor:
        for layer in self:
            x = layer(x, memory)
        return x


# Encoder and decoder have a `forward` each: one that is called with two shapes, as one of both would be, is compiled by
# dynamo for all shapes, which takes longer and is slower.
class Encoder(nn.Module):
    """[B, 3, 1 + 4N, H, W] -> mean and log-variance of the latent, [B, 32, 1 + N, H/8, W/8]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        channels, outputs = config.channels[0], 2 * LATENT_CHANNELS
        layers: list[nn.Module] = [CausalConv3d(3, channels, 3, 3)]
        for level, out in enumerate(config.channels):
            for _ in range(config.blocks):
                layers.append(Residual(channels, out))
                channels = out
            if level < 3:
                layers.append(Downsample(channels, time=level > 0))
        layers += [*_middle(channels), Head(channels, outputs), CausalConv3d(outputs, outputs, 1, 1)]
        self.layers = Layers(layers)

    def forward(self, video: Tensor, memory: Memory | None = None) -> Tensor:
        """`memory`: it is a chunk of a video, the first frame or whole latent frames after it."""
        return self.layers.run(video, memory)


class Decoder(nn.Module):
    """[B, 16, 1 + N, H/8, W/8] -> video [B, 3, 1 + 4N, H, W]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        channels = config.channels[-1]
        layers: list[nn.Module] = [CausalConv3d(LATENT_CHANNELS, LATENT_CHANNELS, 1, 1)]
        layers += [CausalConv3d(LATENT_CHANNELS, channels, 3, 3), *_middle(channels)]
        for level, out in reversed(list(enumerate(config.channels))):
            for _ in range(config.decoder_blocks):
                layers.append(Residual(channels, out))
                channels = out
            if level > 0:
                channels = max(out // 2, config.channels[0])
                layers.append(Upsample(out, channels, time=level > 1))
        self.layers = Layers([*layers, Head(channels, 3)])

    def forward(self, latents: Tensor, memory: Memory | None = None) -> Tensor:
        """`memory` as of the encoder."""
        return self.layers.run(latents, memory)


def _middle(channels: int) -> list[nn.Module]:
    return [Residual(channels, channels), Attention(channels), Residual(channels, channels)]


class Autoencoder(nn.Module):
    """Encoder and decoder; the workload calls the two, whole, tile by tile or chunk by chunk."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.Linear):
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
                assert module.bias is not None
                nn.init.normal_(module.bias, std=0.1)

    def forward(self, video: Tensor) -> Tensor:
        """The reconstruction from the latent's mean: [B, 3, 1 + 4N, H, W] -> [B, 3, 1 + 4N, H, W]."""
        mean, _ = self.encoder(video).chunk(2, dim=1)
        reconstruction: Tensor = self.decoder(mean)
        return reconstruction
