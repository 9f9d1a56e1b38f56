"""The convolutional autoencoder of latent diffusion: images to a latent an eighth of their side, and back.

Architecture: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (2022), appendix G, in the
shape that Stable Diffusion uses (KL-f8: channels 128, 256, 512, 512, two residual blocks a level, 4 latent channels).
The two 1x1 convolutions around the latent belong to the encoder and the decoder here, so that each is one unit to
compile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpubench.workloads.building import NOTHING
from gpubench.workloads.norms import NORM_SILU, norm_silu, with_norm_silu
from gpubench.workloads.parameters import check_side, choose, tile_sides
from gpubench.workloads.tiling import apply_tiled, ways
from gpubench.workloads.tiling_toggles import TILE_CALLS, TILING_TOGGLES
from gpubench.workloads.workload import Batch, Options, Tiling, Workload

LATENT_CHANNELS = 4
SHRINK = 8  # image side / latent side; three of the four levels halve it
WHY = "a latent pixel is 8 image pixels"
KL_WEIGHT = 1e-6  # of the KL term in the loss: latent-diffusion's configuration of KL-f8


@dataclass(frozen=True)
class Config:
    """One size."""

    channels: tuple[int, int, int, int]  # per level, from full resolution down
    blocks: int  # residual blocks per level of the encoder
    decoder_blocks: int  # residual blocks per level of the decoder
    groups: int  # of every GroupNorm
    resolution: int  # pixels
    tiles: tuple[int, ...]  # pixels
    overlap: int  # pixels
    batch_size: int = 1


# Training "base" in fp32 takes 9.9 GiB: 1.3 for weights, gradients and AdamW's two averages, the rest for activations.
SIZES = {
    "huge": Config((128, 256, 512, 512), 2, 3, groups=32, resolution=512, tiles=(256, 384), overlap=64, batch_size=7),
    "xlarge": Config((128, 256, 512, 512), 2, 3, groups=32, resolution=512, tiles=(256, 384), overlap=64, batch_size=3),
    "large": Config((128, 256, 512, 512), 2, 3, groups=32, resolution=512, tiles=(256, 384), overlap=64, batch_size=2),
    "base": Config((128, 256, 512, 512), 2, 3, groups=32, resolution=512, tiles=(256, 384), overlap=64),
    "medium": Config((128, 256, 512, 512), 2, 3, groups=32, resolution=256, tiles=(128, 192), overlap=32),
    # Equal channels everywhere and one block a level: each further shape is one more kernel for inductor to compile.
    "small": Config((64, 64, 64, 64), 1, 1, groups=16, resolution=128, tiles=(64, 96), overlap=16),
    "tiny": Config((8, 8, 8, 8), 1, 1, groups=4, resolution=32, tiles=(16, 24), overlap=8),
}


class Residual(nn.Module):
    """Two times norm, SiLU, 3x3 convolution, plus the input: [B, C, H, W] -> [B, K, H, W]."""

    norm_silu = "torch"  # how they are computed

    def __init__(self, channels: int, out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels, eps=1e-6)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out, eps=1e-6)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv1(norm_silu(self.norm1, x, self.norm_silu))
        y = self.conv2(norm_silu(self.norm2, y, self.norm_silu))
        out: Tensor = y + self.shortcut(x)
        return out


class Attention(nn.Module):
    """Single-head self-attention over all pixels, plus the input: [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x).flatten(2).transpose(1, 2).unsqueeze(1)  # [B, 1, HW, C]: one head
        y = F.scaled_dot_product_attention(self.query(y), self.key(y), self.value(y))  # [B, 1, HW, C]
        y = self.out(y).squeeze(1).transpose(1, 2).reshape(x.shape)
        return x + y


def _middle(channels: int, groups: int) -> list[nn.Module]:
    return [
        Residual(channels, channels, groups),
        Attention(channels, groups),
        Residual(channels, channels, groups),
    ]


def _downsample(channels: int) -> list[nn.Module]:
    """Halves the side; padded on the right and bottom only, as the original is: [B, C, H, W] -> [B, C, H/2, W/2]."""
    return [nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2)]


def _upsample(channels: int) -> list[nn.Module]:
    """Doubles the side by nearest neighbour and a 3x3 convolution: [B, C, H, W] -> [B, C, 2H, 2W]."""
    return [nn.Upsample(scale_factor=2.0, mode="nearest"), nn.Conv2d(channels, channels, 3, padding=1)]


class Encoder(nn.Module):
    """[B, 3, H, W] -> mean and log-variance of the latent, [B, 8, H/8, W/8]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        channels, groups = config.channels[0], config.groups
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1)]
        for level, out in enumerate(config.channels):
            for _ in range(config.blocks):
                layers.append(Residual(channels, out, groups))
                channels = out
            if level < len(config.channels) - 1:
                layers += _downsample(channels)
        layers += _middle(channels, groups)
        layers += [nn.GroupNorm(groups, channels, eps=1e-6), nn.SiLU()]
        layers += [nn.Conv2d(channels, 2 * LATENT_CHANNELS, 3, padding=1)]
        layers += [nn.Conv2d(2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        moments: Tensor = self.layers(images)
        return moments


class Decoder(nn.Module):
    """[B, 4, H/8, W/8] -> image [B, 3, H, W]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        channels, groups = config.channels[-1], config.groups
        layers: list[nn.Module] = [nn.Conv2d(LATENT_CHANNELS, LATENT_CHANNELS, 1)]
        layers += [nn.Conv2d(LATENT_CHANNELS, channels, 3, padding=1), *_middle(channels, groups)]
        for level, out in reversed(list(enumerate(config.channels))):
            for _ in range(config.decoder_blocks):
                layers.append(Residual(channels, out, groups))
                channels = out
            if level:
                layers += _upsample(channels)
        layers += [nn.GroupNorm(groups, channels, eps=1e-6), nn.SiLU(), nn.Conv2d(channels, 3, 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: Tensor) -> Tensor:
        images: Tensor = self.layers(latents)
        return images


class Autoencoder(nn.Module):
    """Encoder and decoder; the workload calls the two, whole or tile by tile.

    Both are classes of their own because dynamo skips the forward of a bare nn.Sequential: its layers would be compiled
    one by one, and again for every new shape.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def forward(self, images: Tensor) -> Tensor:
        """The reconstruction from the latent's mean: [B, 3, H, W] -> [B, 3, H, W]."""
        mean, _ = self.encoder(images).chunk(2, dim=1)
        reconstruction: Tensor = self.decoder(mean)
        return reconstruction


def encode(model: nn.Module, images: Tensor, options: Options) -> Tensor:
    """The latent's mean, [B, 4, H/8, W/8]: the mode of the posterior, so that inference needs no random numbers."""
    encoder = model.get_submodule("encoder")
    tile, overlap = tile_sides(options, multiple=SHRINK, why=WHY)
    if tile:
        moments = apply_tiled(encoder, images, tile=tile, overlap=overlap, down=SHRINK, **ways(options))
    else:
        moments = encoder(images)
    mean: Tensor = moments.chunk(2, dim=1)[0]
    return mean


def decode(model: nn.Module, latents: Tensor, options: Options) -> Tensor:
    """The image, [B, 3, H, W]. Tiles are given in image pixels and must be multiples of 8."""
    decoder = model.get_submodule("decoder")
    tile, overlap = tile_sides(options, multiple=SHRINK, why=WHY)
    if tile:
        tile, overlap = tile // SHRINK, overlap // SHRINK
        return apply_tiled(decoder, latents, tile=tile, overlap=overlap, up=SHRINK, **ways(options))
    images: Tensor = decoder(latents)
    return images


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    """Reconstruction error plus the small KL term. The noise of the latent is an input, so a step is repeatable."""
    images, noise = batch
    mean, log_variance = model.get_submodule("encoder")(images).chunk(2, dim=1)  # [B, 4, H/8, W/8] each
    log_variance = log_variance.float().clamp(-30.0, 20.0)  # as the original: exp() stays finite
    latents = mean + (torch.exp(0.5 * log_variance) * noise).to(mean.dtype)
    reconstruction = model.get_submodule("decoder")(latents).float()
    kl = 0.5 * (mean.float().square() + log_variance.exp() - 1.0 - log_variance).mean()
    loss: Tensor = F.mse_loss(reconstruction, images.float()) + KL_WEIGHT * kl
    return loss


TASKS: dict[str, Callable[[nn.Module, Batch, Options], Tensor]] = {
    "reconstruct": lambda model, batch, options: decode(model, encode(model, batch[0], options), options),
    "encode": lambda model, batch, options: encode(model, batch[0], options),
    "decode": lambda model, batch, options: decode(model, batch[0], options),
}
TARGETS = {"reconstruct": ("encoder", "decoder"), "encode": ("encoder",), "decode": ("decoder",)}


def vae(size: str = "base", task: str = "reconstruct", resolution: int | None = None) -> Workload:
    """The workload `vae`: images of 3 x resolution x resolution pixels, training is `reconstruct` only.

    Its own toggles are those of tiling and `norm_silu`. Raises GpubenchError for an unknown size or task, and for a
    resolution that is no multiple of 8.
    """
    config = choose("size of vae", size, SIZES)
    infer = choose("task of vae", task, TASKS)
    side = config.resolution
    if resolution is not None:
        side = check_side("resolution", resolution, multiple=SHRINK, least=16, why="the encoder halves a side 3 times")
    latent = side // SHRINK

    def build(options: Options = NOTHING) -> nn.Module:
        return with_norm_silu(Autoencoder(config), options)

    def inputs(batch_size: int, generator: torch.Generator) -> Batch:
        images = torch.randn(batch_size, 3, side, side, generator=generator)
        latents = torch.randn(batch_size, LATENT_CHANNELS, latent, latent, generator=generator)
        return {"reconstruct": (images, latents), "encode": (images,), "decode": (latents,)}[task]

    return Workload(
        name="vae" if task == "reconstruct" else f"vae-{task}",
        item="image",
        batch_size=config.batch_size,
        build=build,
        inputs=inputs,
        infer=infer,
        loss=_loss if task == "reconstruct" else None,
        compile_targets=TARGETS[task],
        tiling=Tiling(sizes=config.tiles, multiple=SHRINK, overlap=config.overlap),
        resolution=side,
        toggles=(*TILING_TOGGLES, *TILE_CALLS, NORM_SILU),
    )
