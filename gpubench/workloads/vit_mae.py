"""A masked autoencoder of images or volumes: a vision transformer sees a quarter of the patches and paints the others.

Architecture: He et al., "Masked Autoencoders Are Scalable Vision Learners" (2021), figure 1 and appendix A.1, with the
vision transformers of Dosovitskiy et al. (2020), table 1, and Touvron et al. (DeiT, 2020), table 1. Three quarters of
the patches are masked, positions are sines and cosines, the decoder has 8 blocks of width 512, and the loss is on the
normalised pixels of masked patches. The order that decides which are masked is an input, so a step is repeatable.

"base" is ViT-B/16 at 224 pixels: 111,907,840 values with the two tables of fixed positions, as its published checkpoint
has, 85,798,656 of them in the encoder. The encoder's inference is 35.1 GFLOP an image (torchvision's vit_b_16 with its
classifier: 17.564 billion multiply-adds); a forward pass of training is 19.6, as its encoder sees 50 of 197 tokens.

Shares of the CPU time in percent, operator by operator ("base" with 2 images in inference and 16 in training):

|                  | matrix products | attention | convolution | norms | element-wise and the rest |
| ---------------- | --------------- | --------- | ----------- | ----- | ------------------------- |
| inference, base  | 86              | 7         | 1           | 1     | 5                         |
| inference, small | 71              | 6         | 13          | 3     | 8                         |
| training, base   | 75              | 8         | 1           | 2     | 15                        |
| training, small  | 63              | 5         | 6           | 2     | 25                        |
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpubench.workloads.parameters import check_side, choose
from gpubench.workloads.workload import Batch, Workload

VISIBLE = 0.25  # of the patches
CHANNELS = {2: 3, 3: 1}  # of an image (colours) and of a volume (grey values)
CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}


@dataclass(frozen=True)
class Shape:
    """One transformer."""

    width: int
    layers: int
    heads: int


@dataclass(frozen=True)
class Config:
    """One size."""

    encoder: Shape
    decoder: Shape
    patch: int  # pixels or voxels a side
    image: int  # pixels a side
    volume: int  # voxels a side
    batch_size: int
    dimensions: int = 2


TRANSFORMERS = {"S": Shape(384, 12, 6), "B": Shape(768, 12, 12)}


def _vit_b(batch_size: int) -> Config:
    return Config(TRANSFORMERS["B"], Shape(512, 8, 16), patch=16, image=224, volume=96, batch_size=batch_size)


# Training "base" in fp32 takes some 7 GiB: 1.7 for weights, gradients and AdamW's averages, 5.1 kept by autograd.
SIZES = {
    "huge": _vit_b(batch_size=576),
    "xlarge": _vit_b(batch_size=288),
    "large": _vit_b(batch_size=144),
    "base": _vit_b(batch_size=64),
    "medium": _vit_b(batch_size=24),
    "small": Config(Shape(384, 1, 6), Shape(384, 1, 6), patch=16, image=128, volume=64, batch_size=20),
    "tiny": Config(Shape(32, 2, 2), Shape(16, 1, 2), patch=8, image=32, volume=16, batch_size=2),
}


class Block(nn.Module):
    """Self-attention and a perceptron of four times the width, each after a norm and added to its input: [B, T, C]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.norm1 = nn.LayerNorm(shape.width, eps=1e-6)
        self.project = nn.Linear(shape.width, 3 * shape.width)
        self.out = nn.Linear(shape.width, shape.width)
        self.norm2 = nn.LayerNorm(shape.width, eps=1e-6)
        self.widen = nn.Linear(shape.width, 4 * shape.width)
        self.narrow = nn.Linear(4 * shape.width, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [B, H, T, D]
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        out: Tensor = x + self.narrow(F.gelu(self.widen(self.norm2(x))))
        return out


class Transformer(nn.Module):
    """Blocks and a last norm, [B, T, C] -> [B, T, C]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x)
        return out


class MAE(nn.Module):
    """Images [B, 3, H, W] or volumes [B, 1, D, H, W] of N patches -> features [B, 1 + N, C], or painted patches."""

    positions: Tensor  # [1 + N, C]; those of the class token are zero
    decoder_positions: Tensor

    def __init__(self, config: Config, side: int) -> None:
        super().__init__()
        width, inner = config.encoder.width, config.decoder.width
        channels = CHANNELS[config.dimensions]
        self.patch = config.patch
        self.embed = CONVOLUTIONS[config.dimensions](channels, width, config.patch, stride=config.patch)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.encoder = Transformer(config.encoder)
        self.to_decoder = nn.Linear(width, inner)
        self.mask_token = nn.Parameter(torch.empty(1, 1, inner))
        self.decoder = Transformer(config.decoder)
        self.predict = nn.Linear(inner, channels * config.patch**config.dimensions)
        sides = (side // config.patch,) * config.dimensions
        self.register_buffer("positions", sine_positions(sides, width), persistent=False)
        self.register_buffer("decoder_positions", sine_positions(sides, inner), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        # Each layer keeps the size of its input, and all branches of a transformer together add as much as it had.
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d)):
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
                assert module.bias is not None
                nn.init.normal_(module.bias, std=0.1)
        for token in (self.class_token, self.mask_token):
            nn.init.normal_(token)
        with torch.no_grad():
            for transformer in (self.encoder, self.decoder):
                for block in transformer.blocks:
                    assert isinstance(block, Block)
                    for last in (block.out, block.narrow):
                        last.weight /= math.sqrt(2 * len(transformer.blocks))

    def forward(self, images: Tensor, order: Tensor | None = None) -> Tensor:
        """Features of all patches; with `order` [B, N], all pixels as painted from its first quarter, [B, N, P]."""
        x: Tensor = self.embed(images).flatten(2).transpose(1, 2) + self.positions[1:]  # [B, N, C]
        if order is not None:
            x = take(x, order[:, : visible(order.shape[1])])  # [B, N/4, C]
        first = (self.class_token + self.positions[:1]).expand(len(x), -1, -1)
        x = torch.cat((first.to(x.dtype), x), dim=1)  # [B, 1 + N or 1 + N/4, C]
        x = self.encoder(x)
        if order is None:
            return x
        x = self.to_decoder(x)
        masked = self.mask_token.to(x.dtype).expand(len(x), 1 + order.shape[1] - x.shape[1], -1)
        shuffled = torch.cat((x[:, 1:], masked), dim=1)  # [B, N, C]
        x = torch.cat((x[:, :1], take(shuffled, order.argsort(dim=1))), dim=1) + self.decoder_positions
        painted: Tensor = self.predict(self.decoder(x)[:, 1:])
        return painted


def visible(patches: int) -> int:
    """How many of the patches the encoder sees in training."""
    return int(VISIBLE * patches)


def take(x: Tensor, index: Tensor) -> Tensor:
    """The tokens [B, K, C] at `index` [B, K] of each sample: [B, T, C] -> [B, K, C]."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def sine_positions(sides: tuple[int, ...], width: int) -> Tensor:
    """[1 + N, C]: zeros, then of each patch the sines and cosines of its place along each axis.

    Each axis has an equal part of the channels, and what cannot be shared equally stays zero.
    """
    count = width // (2 * len(sides))  # frequencies of an axis
    rates = 10_000.0 ** -(torch.arange(count) / count)
    places = torch.cartesian_prod(*(torch.arange(side) for side in sides))  # [N, axes]
    angles = places.unsqueeze(-1) * rates  # [N, axes, count]
    table = torch.cat((angles.sin(), angles.cos()), dim=-1).flatten(1)
    return F.pad(table, (0, width - table.shape[1], 1, 0))


def pixels(images: Tensor, patch: int) -> Tensor:
    """The pixels of each patch, in the order of the patches: [B, C, H, W] or [B, C, D, H, W] -> [B, N, P]."""
    axes = images.dim() - 2
    for axis in range(2, 2 + axes):
        images = images.unfold(axis, patch, patch)
    return images.movedim(1, 1 + axes).flatten(1, axes).flatten(2)


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    """The mean squared error of masked patches, whose pixels are normalised to mean 0 and variance 1 in each."""
    images, order = batch
    painted = model(images, order).float()
    patch = model.get_parameter("embed.weight").shape[-1]
    masked = order[:, visible(order.shape[1]) :]
    target = take(pixels(images, patch).float(), masked)
    variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
    return F.mse_loss(take(painted, masked), (target - mean) / (variance + 1e-6).sqrt())


DIMENSIONS = {"2": "images in square patches", "3": "volumes in cubic patches"}


def vit_mae(
    size: str = "base",
    dimensions: int = 2,
    vit: str | None = None,
    resolution: int | None = None,
) -> Workload:
    """The workload `vit_mae`: 3 x resolution^2 images or 1 x resolution^3 volumes, and a random order of their patches.

    `vit` "S" or "B" takes that encoder instead of the size's. Raises GpubenchError for an unknown size, encoder or
    number of dimensions, and for a resolution that is no multiple of the patch or has fewer than four patches.
    """
    config = choose("size of vit_mae", size, SIZES)
    choose("number of dimensions of vit_mae", str(dimensions), DIMENSIONS)
    config = replace(config, dimensions=dimensions)
    if vit is not None:
        config = replace(config, encoder=choose("encoder of vit_mae", vit, TRANSFORMERS))
    side = config.image if dimensions == 2 else config.volume
    if resolution is not None:
        why = "that is a patch's side, and one of four patches is seen"
        side = check_side("resolution", resolution, multiple=config.patch, least=2 * config.patch, why=why)
    patches = (side // config.patch) ** dimensions
    kind = "image" if dimensions == 2 else "volume"

    def inputs(batch_size: int, generator: torch.Generator) -> Batch:
        images = torch.randn(batch_size, CHANNELS[dimensions], *[side] * dimensions, generator=generator)
        return images, torch.rand(batch_size, patches, generator=generator).argsort(dim=1)

    return Workload(
        name="vit_mae" if dimensions == 2 else "vit_mae-3d",
        item=kind,
        batch_size=config.batch_size,
        build=lambda: MAE(config, side),
        inputs=inputs,
        infer=lambda model, batch, options: model(batch[0]),
        loss=_loss,
        resolution=side,
    )
