"""A workload of your own, in one file. Run it from this folder with

gpubench compare-opts --workload my_model.py:denoiser
gpubench compare-opts --workload my_model.py:denoiser --mode training --param channels=64
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from gpubench.workloads.workload import Workload


class Denoiser(nn.Module):
    """[B, 3, H, W] -> [B, 3, H, W]: the image minus the noise that four convolutions find in it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, 3, 3, padding=1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - self.layers(x)


def images(batch_size: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """One batch: a tuple of CPU tensors, the batch first. Draw from `generator`, so that every run sees the same."""
    clean = torch.randn(batch_size, 3, 128, 128, generator=generator)
    noise = torch.randn(batch_size, 3, 128, 128, generator=generator)
    return clean + 0.1 * noise, clean


def infer(model: nn.Module, batch: tuple[torch.Tensor, ...], options: object) -> torch.Tensor:
    """The inference step that is timed."""
    noisy, _ = batch
    return model(noisy)


def loss(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The loss of a training step; gpubench adds backward pass and optimizer. Leave it out for inference only."""
    noisy, clean = batch
    return F.mse_loss(model(noisy).float(), clean.float())


def denoiser(channels: int = 32) -> Workload:
    """What gpubench calls. Each parameter can be set with --param NAME=VALUE, a `size` with --size."""
    return Workload(
        name="denoiser",
        item="image",  # what FPS counts
        batch_size=4,
        build=lambda: Denoiser(channels),  # fp32, on the CPU; gpubench moves and converts it
        inputs=images,
        infer=infer,
        loss=loss,
    )
