"""A model that is fed from a dataset, so that a step may begin with reading its batch.

gpubench compare-opts examples/from_dataset.py:classifier --pipeline loader --set precision=bf16-autocast
"""

import torch
from torch import nn
from torch.utils.data import Dataset

from gpubench import Workload


class Pictures(Dataset[tuple[torch.Tensor, int]]):
    """Draws each picture from its number, where a real one would read a file."""

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        generator = torch.Generator().manual_seed(index)
        picture = torch.randint(256, (3, 64, 64), generator=generator, dtype=torch.uint8)
        return picture.float() / 255 - 0.5, index % 10


def build() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def classifier() -> Workload:
    return Workload(
        name="classifier", item="image", batch_size=16, build=build, dataset=Pictures,
        infer=lambda model, batch, options: model(batch[0]),
        loss=lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
    )  # fmt: skip
