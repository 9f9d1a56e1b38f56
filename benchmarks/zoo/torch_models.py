"""Models of plain torch, for kinds that the five libraries lack."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from ingredients import normals, tokens, zoo_model
from torch import nn

from gpubench.workloads.workload import Workload


class _Modulated(nn.Module):
    """A generator's layer: one convolution for each element of the batch, with weights scaled by its style."""

    def __init__(self, channels: int, style: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels, 3, 3))
        self.scale = nn.Linear(style, channels)

    def forward(self, x: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        count, channels, height, width = x.shape
        weight = self.weight * (self.scale(style) + 1)[:, None, :, None, None]
        weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        groups = weight.reshape(count * channels, channels, 3, 3)
        outputs = F.conv2d(x.reshape(1, count * channels, height, width), groups, padding=1, groups=count)
        return F.leaky_relu(outputs.reshape(count, channels, height, width), 0.2)


class _Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(1, 32, 8, 8))
        self.layers = nn.ModuleList(_Modulated(32, 16) for _ in range(3))
        self.color = nn.Conv2d(32, 3, 1)

    def forward(self, style: torch.Tensor) -> torch.Tensor:
        x = self.start.expand(len(style), -1, -1, -1)
        for layer in self.layers:
            x = layer(F.interpolate(x, scale_factor=2.0), style)
        return self.color(x)


def modulated_generator() -> Workload:
    """Convolutions by function, with weights that are computed, and no picture among the inputs."""
    return zoo_model("torch-modulated-generator", _Generator, normals((16,)), trains=True)


class _Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 48)
        self.recurrent = nn.LSTM(48, 64, num_layers=2, batch_first=True, bidirectional=True)
        self.classes = nn.Linear(128, 12)

    def forward(self, words: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        outputs, state = self.recurrent(self.embedding(words))
        return self.classes(outputs), state


def lstm_tagger() -> Workload:
    """Nearly all of its work is one call of an LSTM."""
    return zoo_model("torch-lstm-tagger", _Tagger, tokens(100, 24), trains=True)


class _AlwaysDropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(64, 256), nn.Linear(256, 256), nn.Linear(256, 10)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            x = F.dropout(torch.relu(layer(x)), 0.2, training=True)
        return self.layers[-1](x)


def always_dropout() -> Workload:
    """Monte-Carlo dropout: random in inference too."""
    return zoo_model("torch-always-dropout", _AlwaysDropping, normals((64,)), trains=True)


class _BoxesAndScores(nn.Module):
    """Boxes in pixels beside scores that only fp32 can tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 32, 3, stride=4, padding=1)
        self.boxes = nn.Conv2d(32, 4, 1)
        self.scores = nn.Conv2d(32, 1, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        features = torch.relu(self.body(x))
        base = self.scores(features)
        return {
            "boxes": (self.boxes(features).sigmoid() * 640).flatten(2),
            "scores": (base + 60 - 60).flatten(1),
        }


def boxes_and_scores() -> Workload:
    """Small outputs lose their digits where large ones do not: in bfloat16 the scores are wrong."""
    return zoo_model("torch-boxes-and-scores", _BoxesAndScores, normals((3, 64, 64)))
