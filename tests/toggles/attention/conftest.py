"""A small transformer whose attention has separate query, key and value layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

WIDTH, LENGTH = 16, 6


class Attention(nn.Module):
    """Self-attention, or cross-attention to `states`; `settings` are arguments of torch's function."""

    def __init__(self, heads: int = 4, **settings: Any) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.to_out, self.heads, self.settings = nn.Linear(WIDTH, WIDTH), heads, settings

    def forward(self, x: torch.Tensor, states: torch.Tensor | None = None) -> torch.Tensor:
        states = x if states is None else states
        query, key, value = (
            layer(each).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, each in ((self.to_q, x), (self.to_k, states), (self.to_v, states))
        )
        y = F.scaled_dot_product_attention(query, key, value, **self.settings)
        return x + self.to_out(y.transpose(1, 2).flatten(2))


class Layers(nn.Module):
    """Two self-attentions and a head; `[B, L, 16]` -> `[B, 3]`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList(Attention(**settings) for _ in range(2)), nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


class ByHand(nn.Module):
    """An attention that calls no function of torch's for it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(((x @ x.transpose(1, 2)).softmax(-1) @ x).mean(1))


def tokens(batch_size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(batch_size, LENGTH, WIDTH, generator=generator)
    return x, torch.randint(0, 3, (batch_size,), generator=generator)


class Attending:
    """What the tests of this folder share."""

    Attention, Layers, ByHand, WIDTH, LENGTH = Attention, Layers, ByHand, WIDTH, LENGTH
    tokens = staticmethod(tokens)


@pytest.fixture
def attending() -> type[Attending]:
    return Attending


@pytest.fixture(autouse=True)
def own_attention() -> Any:
    """Torch's own function and choice afterwards."""
    from gpubench.toggles.attention.replaced import replace

    plain = F.scaled_dot_product_attention
    yield
    replace(F.scaled_dot_product_attention, plain)
    for name in ("flash", "mem_efficient", "math", "cudnn"):
        getattr(torch.backends.cuda, f"enable_{name}_sdp")(True)
