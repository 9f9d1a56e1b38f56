"""A residual U-Net of microscopy: segmentation of volumes, label-free prediction and super-resolution of images.

Architecture: Cicek et al., "3D U-Net" (2016), with residual blocks as in Lee et al. (2017) and the normalisation and
leaky ReLU of nnU-Net (Isensee et al., 2021). One input channel of grey values. One network of two or three dimensions
serves three tasks:

* `segmentation`: three classes of a volume, by Dice and cross-entropy;
* `labelfree`: the fluorescence image that belongs to a bright-field image, by the squared error (Ounkomol et al.,
  "Label-free prediction of three-dimensional fluorescence images", 2018, of which this is the two-dimensional case);
* `superres`: a sharper image on the same pixels, to which the input has been enlarged before (Dong et al., 2014). Wang
  et al., "Deep learning enables cross-modality super-resolution in fluorescence microscopy" (2019), train a U-Net
  for that as a generative adversarial network. The step here is that of Isola et al., "Image-to-Image Translation
  with Conditional Adversarial Networks" (2017), without dropout, with its discriminator of 70x70 pixel patches.

"base" has 22.9 M parameters in three dimensions and 8.1 M in two; the forward pass of a 64^3 patch is 121.2 GFLOP and
that of a 256^2 patch 25.4. The discriminator has 2.8 M (with colour images the 2.769 M of the authors' code) and 6.3
GFLOP a call, of which a training step has three.

Shares of the CPU time in percent, operator by operator (torch's profiler, one thread of a busy Intel Xeon VM of 2
cores, "base" with a batch of 1):

|                                     | convolution | norms | element-wise, copies, optimizer |
| ----------------------------------- | ----------- | ----- | ------------------------------- |
| segmentation, inference: base       | 77          | 9     | 14                              |
| segmentation, inference: small      | 73          | 12    | 15                              |
| segmentation, training: base        | 80          | 6     | 14                              |
| segmentation, training: small       | 76          | 5     | 19                              |
| labelfree, inference: base          | 75          | 10    | 15                              |
| labelfree, inference: small         | 71          | 14    | 15                              |
| labelfree, training: base           | 78          | 5     | 17                              |
| labelfree, training: small          | 66          | 9     | 25                              |
| superres, training: base            | 83          | 4     | 13                              |
| superres, training: small           | 71          | 4     | 25                              |
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpubench.workloads.optimizing import Optimizer
from gpubench.workloads.parameters import check_side, choose
from gpubench.workloads.sliding import SW_BATCH_SIZE, slide, sw_batch_size
from gpubench.workloads.tiling import lay_side
from gpubench.workloads.workload import Batch, Options, Tiling, Workload

IN_CHANNELS = 1
CLASSES = 3  # background and two structures
GROUPS = 8  # of every GroupNorm, with norm="group"
CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
ENLARGING = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
INSTANCE_NORMS = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
NORMS = {"instance": "over each channel of each sample", "group": f"over each of {GROUPS} groups of channels"}
ABSOLUTE_WEIGHT = 100.0  # of the absolute error beside the adversarial loss: lambda of Isola et al.
ADAM = {"lr": 2e-4, "betas": (0.5, 0.999)}  # of both adversaries: Isola et al., section 3.3
JUDGED = 32  # pixels a side at least, for the discriminator


@dataclass(frozen=True)
class Config:
    """One size. Channels of level l: `width * 2**l`; each level has half the side of the one above."""

    width: int
    levels: int
    patch: int  # pixels or voxels a side; also the sliding window
    whole: int  # pixels or voxels a side, of the views of a whole image or volume
    batch_size: int  # patches

    @property
    def multiple(self) -> int:
        """A side must be a multiple of this many pixels to be halved down to the lowest level."""
        return int(2 ** (self.levels - 1))


# Of volumes. "base", batch 8 of 64^3 patches, is the set-up that the CytoDL guide's claims are for. Its training in
# fp32 takes 5.5 GiB, most of it for activations, and a whole volume 3.3.
SIZES = {
    "huge": Config(width=32, levels=5, patch=64, whole=320, batch_size=96),
    "xlarge": Config(width=32, levels=5, patch=64, whole=256, batch_size=48),
    "large": Config(width=32, levels=5, patch=64, whole=192, batch_size=24),
    "base": Config(width=32, levels=5, patch=64, whole=160, batch_size=8),
    "medium": Config(width=32, levels=5, patch=64, whole=128, batch_size=4),
    "small": Config(width=8, levels=3, patch=24, whole=36, batch_size=2),
    "tiny": Config(width=8, levels=2, patch=8, whole=12, batch_size=2),
}
# Training "base" in fp32 takes 7.3 GiB for label-free prediction and 8.3 for super-resolution.
IMAGE_SIZES = {
    "huge": Config(width=32, levels=5, patch=256, whole=5120, batch_size=240),
    "xlarge": Config(width=32, levels=5, patch=256, whole=4096, batch_size=120),
    "large": Config(width=32, levels=5, patch=256, whole=3072, batch_size=64),
    "base": Config(width=32, levels=5, patch=256, whole=2048, batch_size=32),
    "medium": Config(width=32, levels=5, patch=256, whole=1024, batch_size=16),
    "small": Config(width=32, levels=3, patch=64, whole=128, batch_size=1),
    "tiny": Config(width=8, levels=2, patch=32, whole=48, batch_size=2),
}


def _norm(dimensions: int, norm: str, channels: int) -> nn.Module:
    return nn.GroupNorm(GROUPS, channels) if norm == "group" else INSTANCE_NORMS[dimensions](channels, affine=True)


class Residual(nn.Module):
    """Two convolutions of 3 pixels a side, plus the shortcut: [B, C, *S] -> [B, K, *S / stride]."""

    def __init__(self, dimensions: int, channels: int, out: int, norm: str, stride: int = 1) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[dimensions]
        self.conv1 = convolution(channels, out, 3, stride, padding=1, bias=False)
        self.norm1 = _norm(dimensions, norm, out)
        self.conv2 = convolution(out, out, 3, padding=1, bias=False)
        self.norm2 = _norm(dimensions, norm, out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = convolution(channels, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.norm1(self.conv1(x)), 0.01)
        y = self.norm2(self.conv2(y))
        return F.leaky_relu(y + self.shortcut(x), 0.01)


class UNet(nn.Module):
    """Images or volumes [B, 1, *S] -> class scores, or the one channel of another image, [B, K, *S]."""

    def __init__(self, dimensions: int, config: Config, out: int, norm: str) -> None:
        super().__init__()
        channels = [config.width * 2**level for level in range(config.levels)]
        pairs = list(itertools.pairwise(channels))
        self.stem = Residual(dimensions, IN_CHANNELS, channels[0], norm)
        self.down = nn.ModuleList(Residual(dimensions, above, below, norm, stride=2) for above, below in pairs)
        self.up = nn.ModuleList(ENLARGING[dimensions](below, above, 2, stride=2) for above, below in pairs)
        self.merge = nn.ModuleList(Residual(dimensions, 2 * above, above, norm) for above in channels[:-1])
        self.head = CONVOLUTIONS[dimensions](channels[0], out, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)  # [B, W, *S]
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(x)  # twice the channels, half the sides
        for up, merge, skip in zip(reversed(self.up), reversed(self.merge), reversed(skips), strict=True):
            x = merge(torch.cat((up(x), skip), dim=1))  # half the channels, twice the sides
        out: Tensor = self.head(x)
        return out


class Discriminator(nn.Module):
    """Source and image, [B, C, H, W] each -> whether each patch of 70 pixels is real, [B, 1, H/8 - 2, W/8 - 2].

    Isola et al., appendix 6.1.2: C64-C128-C256-C512, convolutions of 4 pixels a side.
    """

    def __init__(self, channels: int, width: int, norm: str) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(2 * channels, width, 4, 2, padding=1), nn.LeakyReLU(0.2)]
        for stride in (2, 2, 1):
            layers.append(nn.Conv2d(width, 2 * width, 4, stride, padding=1, bias=False))
            layers += [_norm(2, norm, 2 * width), nn.LeakyReLU(0.2)]
            width *= 2
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 1, 4, padding=1))

    def forward(self, source: Tensor, image: Tensor) -> Tensor:
        scores: Tensor = self.layers(torch.cat((source, image), dim=1))
        return scores


class Adversaries(nn.Module):
    """The generator, which alone is used for inference, and the discriminator that it is trained against."""

    def __init__(self, config: Config, norm: str) -> None:
        super().__init__()
        self.generator = UNet(2, config, IN_CHANNELS, norm)
        self.discriminator = Discriminator(IN_CHANNELS, 2 * config.width, norm)

    def forward(self, source: Tensor) -> Tensor:
        image: Tensor = self.generator(source)
        return image


def dice_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """1 - the mean Dice coefficient over batch and classes: [B, K, D, H, W] scores, [B, D, H, W] labels -> scalar.

    Source: Milletari et al., "V-Net" (2016), with sums instead of squares in the denominator.
    """
    shares = scores.softmax(dim=1)
    truth = F.one_hot(labels, scores.shape[1]).movedim(-1, 1).to(shares.dtype)  # [B, K, D, H, W]
    sides = (2, 3, 4)
    overlap = (shares * truth).sum(sides)  # [B, K]
    return 1.0 - ((2.0 * overlap + 1.0) / (shares.sum(sides) + truth.sum(sides) + 1.0)).mean()


def segmentation_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Dice and cross-entropy: [B, 1, D, H, W] volumes, [B, D, H, W] labels -> scalar."""
    volumes, labels = batch
    scores = model(volumes).float()
    return dice_loss(scores, labels) + F.cross_entropy(scores, labels)


def squared_error(model: nn.Module, batch: Batch) -> Tensor:
    """The mean squared error: bright-field and fluorescence images, [B, 1, H, W] each -> scalar."""
    images, targets = batch
    return F.mse_loss(model(images).float(), targets.float())


def adversarial_step(model: nn.Module, batch: Batch, optimizers: Mapping[str, torch.optim.Optimizer]) -> Tensor:
    """A step of the discriminator, then one of the generator: images and sharp ones, [B, 1, H, W] each -> scalar."""
    images, targets = batch
    generator, discriminator = model.get_submodule("generator"), model.get_submodule("discriminator")

    def judged(candidates: Tensor, real: bool) -> Tensor:
        scores = discriminator(images, candidates).float()
        return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, float(real)))

    made = generator(images)
    optimizers["discriminator"].zero_grad()
    wrong = (judged(targets, True) + judged(made.detach(), False)) / 2
    wrong.backward()
    optimizers["discriminator"].step()
    discriminator.requires_grad_(False)
    optimizers["generator"].zero_grad()
    unlike = judged(made, True) + ABSOLUTE_WEIGHT * F.l1_loss(made.float(), targets.float())
    unlike.backward()
    optimizers["generator"].step()
    discriminator.requires_grad_(True)
    return wrong.detach() + unlike.detach()


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the network is for, and how it is trained."""

    dimensions: int
    sizes: Mapping[str, Config]
    whole: str  # what patches are cut from
    out: int  # channels
    loss: Callable[[nn.Module, Batch], Tensor] | None = None
    train_step: Callable[[nn.Module, Batch, Mapping[str, torch.optim.Optimizer]], Tensor] | None = None
    optimizers: Mapping[str, Optimizer] = field(default_factory=dict)
    parts: tuple[str, ...] = ("",)  # to compile; the first one infers


TASKS = {
    "segmentation": Task(dimensions=3, sizes=SIZES, whole="volume", out=CLASSES, loss=segmentation_loss),
    "labelfree": Task(dimensions=2, sizes=IMAGE_SIZES, whole="image", out=IN_CHANNELS, loss=squared_error),
    "superres": Task(
        dimensions=2,
        sizes=IMAGE_SIZES,
        whole="image",
        out=IN_CHANNELS,
        train_step=adversarial_step,
        optimizers={
            part: Optimizer(parts=(part,), kind="Adam", settings=ADAM) for part in ("generator", "discriminator")
        },
        parts=("generator", "discriminator"),
    ),
}
VIEWS = {
    "patch": "a batch of patches; inference and training",
    "sliding": "a whole image or volume through windows of the patch's side that overlap by half; inference",
    "whole": "a whole image or volume at once, or through windows of tile_size; inference",
}


@dataclass(frozen=True)
class Patches:
    """A data set of patches with what they are trained on, each drawn from its number; a real one cuts out of files."""

    draw: Callable[[int, torch.Generator], Batch]

    def __len__(self) -> int:
        return 10_000

    def __getitem__(self, index: int) -> Batch:
        return tuple(tensor[0] for tensor in self.draw(1, torch.Generator().manual_seed(index)))


def unet3d(
    size: str = "base",
    task: str = "segmentation",
    view: str = "patch",
    norm: str = "instance",
    resolution: int | None = None,
) -> Workload:
    """The workload `unet3d`: squares or cubes of `resolution` a side, patches with random targets or a whole one.

    Its own toggle is `sw_batch_size`. Raises GpubenchError for an unknown size, task, view or norm, and for a
    resolution that the levels cannot halve.
    """
    about = choose("task of unet3d", task, TASKS)
    config = choose("size of unet3d", size, about.sizes)
    choose("view of unet3d", view, VIEWS)
    choose("norm of unet3d", norm, NORMS)
    side, multiple = config.patch if view == "patch" else config.whole, config.multiple
    if resolution is not None:
        why = "a side is halved level by level, and what is left is normalised"
        least = max(2 * multiple, JUDGED if about.train_step else 0)
        side = check_side("resolution", resolution, multiple=multiple, least=least, why=why)
    sides = (side,) * about.dimensions
    calls: list[int] = []  # of the last step: how many samples the network was called with, where windows slid

    def build() -> nn.Module:
        return Adversaries(config, norm) if about.train_step else UNet(about.dimensions, config, about.out, norm)

    def inputs(batch_size: int, generator: torch.Generator) -> Batch:
        images = torch.randn(batch_size, IN_CHANNELS, *sides, generator=generator)
        if view != "patch":
            return (images,)
        if task == "segmentation":
            return images, torch.randint(CLASSES, (batch_size, *sides), generator=generator)
        return images, torch.randn(images.shape, generator=generator)

    def infer(model: nn.Module, batch: Batch, options: Options) -> Tensor:
        network = model.get_submodule(about.parts[0])
        window, overlap = options.get("tile_size", 0), options.get("tile_overlap", 0)
        if view == "sliding":
            window, overlap = config.patch, config.patch // 2
        calls.clear()
        if not window:
            whole: Tensor = network(batch[0])
            return whole
        check_side("tile size", window, multiple=multiple, least=2 * multiple, why="the network halves it so often")
        return slide(network, batch[0], window, overlap, options.get(SW_BATCH_SIZE, 1), calls)

    tiles = tuple(range(config.patch, side, config.patch // 2))
    count, idle = None, "no window slides over a patch" if view == "patch" else ""
    if view == "whole" and not tiles:
        idle = f"the {about.whole} is no larger than a window"
    if view == "sliding":
        count = len(lay_side(side, config.patch, config.patch // 2).starts) ** about.dimensions
    trains = view == "patch"
    return Workload(
        name="-".join(("unet3d", *(part for part in (task, view) if part not in ("segmentation", "patch")))),
        item="patch" if view == "patch" else about.whole,
        batch_size=config.batch_size if view == "patch" else 1,
        build=build,
        inputs=None if view == "patch" else inputs,
        dataset=(lambda: Patches(inputs)) if view == "patch" else None,
        infer=infer,
        loss=about.loss if trains else None,
        train_step=about.train_step if trains else None,
        optimizers=about.optimizers if trains else {},
        compile_targets=about.parts if trains else about.parts[:1],
        toggles=(sw_batch_size(calls, count, idle),),
        tiling=Tiling(sizes=tiles, multiple=multiple, overlap=config.patch // 2) if view == "whole" else None,
        resolution=side,
    )
