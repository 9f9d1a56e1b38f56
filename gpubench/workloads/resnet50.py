"""ResNet-50 v1.5 for image classification, inference and training.

Architecture: He et al., "Deep Residual Learning for Image Recognition" (2015), table 1, with the stride of each stage
in the 3x3 convolution ("v1.5", as in MLPerf and torchvision), so that numbers can be held against public ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpubench.workloads.parameters import check_side, choose
from gpubench.workloads.workload import Batch, Workload

BLOCKS = (3, 4, 6, 3)  # per stage; what makes it a ResNet-50
EXPANSION = 4  # outer channels of a bottleneck / inner channels


@dataclass(frozen=True)
class Config:
    """One size. Inner channels of stage s: `width * 2**s`."""

    width: int
    resolution: int  # pixels
    batch_size: int
    classes: int
    blocks: tuple[int, ...] = BLOCKS


# "large" and above keep the GPU of a server busy, which at batch 32 would wait for launches.
SIZES = {
    "huge": Config(width=64, resolution=224, batch_size=512, classes=1000),
    "xlarge": Config(width=64, resolution=224, batch_size=256, classes=1000),
    "large": Config(width=64, resolution=224, batch_size=128, classes=1000),
    "base": Config(width=64, resolution=224, batch_size=32, classes=1000),
    "medium": Config(width=64, resolution=224, batch_size=16, classes=1000),
    "small": Config(width=32, resolution=128, batch_size=16, classes=1000),
    "tiny": Config(width=8, resolution=32, batch_size=2, classes=10, blocks=(1, 1)),
}


class Bottleneck(nn.Module):
    """1x1 down, 3x3 (with the stride), 1x1 up, plus the shortcut: [B, C, H, W] -> [B, 4N, H/stride, W/stride]."""

    def __init__(self, channels: int, inner: int, stride: int) -> None:
        super().__init__()
        outer = inner * EXPANSION
        self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outer, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(outer)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != outer:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))  # [B, N, H, W]
        y = F.relu(self.norm2(self.conv2(y)))  # [B, N, H/stride, W/stride]
        y = self.norm3(self.conv3(y))  # [B, 4N, H/stride, W/stride]
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """[B, 3, H, W] -> class scores [B, K]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.width
        self.conv = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        stages, channels = [], width
        for stage, blocks in enumerate(config.blocks):
            inner = width * 2**stage
            for block in range(blocks):
                stages.append(Bottleneck(channels, inner, stride=2 if stage and not block else 1))
                channels = inner * EXPANSION
        self.stages = nn.Sequential(*stages)
        self.classify = nn.Linear(channels, config.classes)
        self._initialise()

    def _initialise(self) -> None:
        # He et al. (2015): keeps the second moment through convolution and ReLU. The last norm of each block starts at
        # 1/4, because in inference the untrained norms do not normalise (mean 0, variance 1), and 16 full-size
        # residual branches would multiply the variance by 2**16.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            elif isinstance(module, Bottleneck):
                nn.init.constant_(module.norm3.weight, 0.25)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))  # [B, W, H/2, W/2]
        x = self.stages(self.pool(x))  # [B, 32W, H/32, W/32]
        scores: Tensor = self.classify(x.mean(dim=(2, 3)))  # [B, K]
        return scores


def resnet50(size: str = "base", resolution: int | None = None) -> Workload:
    """The workload `resnet50`: images of 3 x resolution x resolution pixels, 1000 classes, random labels.

    Raises GpubenchError for an unknown size or a resolution below 32 pixels.
    """
    config = choose("size of resnet50", size, SIZES)
    side = config.resolution
    if resolution is not None:
        side = check_side("resolution", resolution, multiple=1, least=32, why="the network halves a side five times")

    def inputs(batch_size: int, generator: torch.Generator) -> Batch:
        images = torch.randn(batch_size, 3, side, side, generator=generator)
        labels = torch.randint(config.classes, (batch_size,), generator=generator)
        return images, labels

    return Workload(
        name="resnet50",
        item="image",
        batch_size=config.batch_size,
        build=lambda: ResNet(config),
        inputs=inputs,
        infer=lambda model, batch, options: model(batch[0]),
        loss=_loss,
        resolution=side,
    )


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    images, labels = batch
    return F.cross_entropy(model(images).float(), labels)
