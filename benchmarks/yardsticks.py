"""Small fixed jobs, whose speed says what the machine itself does: arithmetic, memory, and a bit of both."""

from __future__ import annotations

import torch
from torch import nn

from gpubench import Workload

COPIED = 16 * 2**20  # floats: 64 MiB, beyond any cache


class Product(nn.Module):
    """One product of square matrices: [B, 1024] -> [B, 1024]."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1024, 1024))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


class Copy(nn.Module):
    """Reads and writes 64 MiB: [64 Mi / 4] -> [1]."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.target = torch.empty(COPIED)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.add(x, 1.0, out=self.target)
        return self.target[:1] + self.weight


class Convolution(nn.Module):
    """One convolution and its activation: [B, 64, 56, 56] -> the same."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(64, 64, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.convolution(x))


def product() -> Workload:
    """Arithmetic."""
    return Workload(
        name="product", item="row", batch_size=1024, build=Product,
        inputs=lambda batch, generator: (torch.randn(batch, 1024, generator=generator),),
    )  # fmt: skip


def copy() -> Workload:
    """Memory."""
    return Workload(
        name="copy", item="step", batch_size=1, build=Copy,
        inputs=lambda batch, generator: (torch.randn(COPIED, generator=generator),),
    )  # fmt: skip


def convolution() -> Workload:
    """Both."""
    return Workload(
        name="convolution", item="image", batch_size=8, build=Convolution,
        inputs=lambda batch, generator: (torch.randn(batch, 64, 56, 56, generator=generator),),
    )  # fmt: skip
