"""A residual 3-D U-Net for segmentation of volumes: patches, whole volumes and sliding windows.

Architecture: Cicek et al., "3D U-Net" (2016), with residual blocks as in Lee et al. (2017) and the normalisation and
leaky ReLU of nnU-Net (Isensee et al., 2021). One input channel (a grey-value volume), three classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpubench.errors import GpubenchError
from gpubench.workloads.parameters import check_side, choose
from gpubench.workloads.tiling import apply_tiled
from gpubench.workloads.workload import Batch, Options, Tiling, Workload

IN_CHANNELS = 1
CLASSES = 3  # background and two structures
GROUPS = 8  # of every GroupNorm, with norm="group"
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "instance": lambda channels: nn.InstanceNorm3d(channels, affine=True),
    "group": lambda channels: nn.GroupNorm(GROUPS, channels),
}


@dataclass(frozen=True)
class Config:
    """One size. Channels of level l: `width * 2**l`; each level has half the side of the one above."""

    width: int
    levels: int
    patch: int  # voxels a side; also the sliding window
    volume: int  # voxels a side, of the tasks that take a volume
    batch_size: int  # patches

    @property
    def multiple(self) -> int:
        """A side must be a multiple of this many voxels to be halved down to the lowest level."""
        return int(2 ** (self.levels - 1))


# "base", batch 8 of 64^3 patches, is the set-up that the CytoDL guide's claims are for. Its training in fp32 takes
# 5.1 GiB, most of it for activations.
SIZES = {
    "huge": Config(width=32, levels=5, patch=64, volume=160, batch_size=96),
    "xlarge": Config(width=32, levels=5, patch=64, volume=160, batch_size=48),
    "large": Config(width=32, levels=5, patch=64, volume=160, batch_size=24),
    "base": Config(width=32, levels=5, patch=64, volume=160, batch_size=8),
    "medium": Config(width=32, levels=5, patch=64, volume=128, batch_size=4),
    "small": Config(width=8, levels=4, patch=32, volume=48, batch_size=1),
    "tiny": Config(width=8, levels=2, patch=8, volume=12, batch_size=2),
}


class Residual(nn.Module):
    """Two 3x3x3 convolutions, plus the shortcut: [B, C, D, H, W] -> [B, K, D/stride, H/stride, W/stride]."""

    def __init__(self, channels: int, out: int, norm: str, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, out, 3, stride, padding=1, bias=False)
        self.norm1 = NORMS[norm](out)
        self.conv2 = nn.Conv3d(out, out, 3, padding=1, bias=False)
        self.norm2 = NORMS[norm](out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Conv3d(channels, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.norm1(self.conv1(x)), 0.01)
        y = self.norm2(self.conv2(y))
        return F.leaky_relu(y + self.shortcut(x), 0.01)


class UNet(nn.Module):
    """[B, 1, D, H, W] -> class scores [B, 3, D, H, W]."""

    def __init__(self, config: Config, norm: str) -> None:
        super().__init__()
        channels = [config.width * 2**level for level in range(config.levels)]
        self.stem = Residual(IN_CHANNELS, channels[0], norm)
        self.down = nn.ModuleList(
            Residual(above, below, norm, stride=2) for above, below in itertools.pairwise(channels)
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(below, above, 2, stride=2) for above, below in itertools.pairwise(channels)
        )
        self.merge = nn.ModuleList(Residual(2 * above, above, norm) for above in channels[:-1])
        self.classify = nn.Conv3d(channels[0], CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)  # [B, W, D, H, W]
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(x)  # twice the channels, half the sides
        for up, merge, skip in zip(reversed(self.up), reversed(self.merge), reversed(skips), strict=True):
            x = merge(torch.cat((up(x), skip), dim=1))  # half the channels, twice the sides
        scores: Tensor = self.classify(x)
        return scores


def dice_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """1 - the mean Dice coefficient over batch and classes: [B, K, D, H, W] scores, [B, D, H, W] labels -> scalar.

    Source: Milletari et al., "V-Net" (2016), with sums instead of squares in the denominator.
    """
    shares = scores.softmax(dim=1)
    truth = F.one_hot(labels, scores.shape[1]).movedim(-1, 1).to(shares.dtype)  # [B, K, D, H, W]
    sides = (2, 3, 4)
    overlap = (shares * truth).sum(sides)  # [B, K]
    return 1.0 - ((2.0 * overlap + 1.0) / (shares.sum(sides) + truth.sum(sides) + 1.0)).mean()


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    volumes, labels = batch
    scores = model(volumes).float()
    return dice_loss(scores, labels) + F.cross_entropy(scores, labels)


def segment(model: nn.Module, volumes: Tensor, *, window: int, overlap: int, window_batch: int) -> Tensor:
    """Class scores [B, 3, D, H, W] of volumes [B, 1, D, H, W]; `window` 0: the whole volume at once.

    `window_batch` windows (of each volume in the batch) go through the model in one call.
    """
    if not window:
        whole: Tensor = model(volumes)
        return whole
    return apply_tiled(model, volumes, tile=window, overlap=overlap, tiles_per_call=window_batch)


TASKS = {
    "patch": "a batch of patches; inference and training",
    "sliding": "one volume through windows of the patch's side that overlap by half; inference",
    "volume": "one volume at once, or through windows of tile_size; inference",
}


def unet3d(
    size: str = "base",
    task: str = "patch",
    norm: str = "instance",
    resolution: int | None = None,
    window_batch: int = 4,
) -> Workload:
    """The workload `unet3d`: cubes of resolution^3 voxels, patches with random labels or one volume.

    Raises GpubenchError for an unknown size, task or norm, for a resolution that the levels cannot halve, and for
    `window_batch` below 1.
    """
    config = choose("size of unet3d", size, SIZES)
    choose("task of unet3d", task, TASKS)
    choose("norm of unet3d", norm, NORMS)
    if window_batch < 1:
        raise GpubenchError(f"window_batch is {window_batch}.", "Give a whole number of at least 1.")
    side = config.patch if task == "patch" else config.volume
    if resolution is not None:
        why = f"the network halves a side {config.levels - 1} times and normalises over what is left"
        multiple = config.multiple
        side = check_side("resolution", resolution, multiple=multiple, least=2 * multiple, why=why)

    def inputs(batch_size: int, generator: torch.Generator) -> Batch:
        volumes = torch.randn(batch_size, IN_CHANNELS, side, side, side, generator=generator)
        if task != "patch":
            return (volumes,)
        return volumes, torch.randint(CLASSES, (batch_size, side, side, side), generator=generator)

    def infer(model: nn.Module, batch: Batch, options: Options) -> Tensor:
        window, overlap = 0, 0
        if task == "sliding":
            window, overlap = config.patch, config.patch // 2
        elif task == "volume":
            window, overlap = options.get("tile_size", 0), options.get("tile_overlap", 0)
            if window:
                why = "the network halves a side that many times"
                check_side("tile size", window, multiple=config.multiple, least=2 * config.multiple, why=why)
        return segment(model, batch[0], window=window, overlap=overlap, window_batch=window_batch)

    windows = tuple(range(config.patch, side, config.patch // 2))
    return Workload(
        name="unet3d" if task == "patch" else f"unet3d-{task}",
        item="patch" if task == "patch" else "volume",
        batch_size=config.batch_size if task == "patch" else 1,
        build=lambda: UNet(config, norm),
        inputs=inputs,
        infer=infer,
        loss=_loss if task == "patch" else None,
        tiling=Tiling(sizes=windows, multiple=config.multiple, overlap=config.patch // 2) if task == "volume" else None,
        resolution=side,
    )
