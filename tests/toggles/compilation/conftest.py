"""A model of repeated blocks, and dynamo without the time that a compiler takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
import torch._inductor.compile_fx
from torch import nn

from gpubench.toggles.compilation.compile import COMPILE
from gpubench.toggles.model_context import ModelContext
from gpubench.toggles.toggle import Toggle
from gpubench.workloads.workload import Workload


class Block(nn.Module):
    """[B, 4] -> [B, 4], over a hidden layer."""

    def __init__(self, hidden: int = 6) -> None:
        super().__init__()
        self.widen, self.narrow = nn.Linear(4, hidden), nn.Linear(hidden, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.narrow(torch.relu(self.widen(x)))


class Stack(nn.Module):
    """Images [B, 4, H, W] -> [B, 3], through blocks of those hidden sizes."""

    def __init__(self, hidden: tuple[int, ...] = (6, 6, 6)) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(map(Block, hidden))
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(2).mean(2)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def run_graphs(module: Any, inputs: Any, **_: Any) -> Any:
    """In place of inductor: the graph as it is."""
    return torch.compiler.disable(module.forward)  # which dynamo would compile else


@pytest.fixture
def eager() -> Iterator[None]:
    """Graphs that dynamo makes are run as they are, and dynamo's settings are put back afterwards."""
    with (
        mock.patch.object(torch._inductor.compile_fx, "compile_fx", run_graphs),
        torch._dynamo.config.patch(cache_size_limit=8),
    ):
        yield


def without_options() -> Toggle:
    """A torch.compile that is not told what the other toggles of its family ask for."""

    def apply(context: ModelContext, value: str | int) -> None:
        asked, context.configuration = context.configuration, {"compile": value}
        COMPILE.apply(context, value)
        context.configuration = asked

    return dataclasses.replace(COMPILE, apply=apply)


class Compiling:
    """What the tests of this folder share beside the kit."""

    Block, Stack = Block, Stack
    without_options = staticmethod(without_options)

    def __init__(self, kit: Any) -> None:
        self.kit = kit

    def stack(self, hidden: tuple[int, ...] = (6, 6, 6), **changes: Any) -> Workload:
        found: Workload = self.kit.workload(lambda: Stack(hidden), **changes)
        return found


@pytest.fixture
def compiling(kit: Any) -> Compiling:
    return Compiling(kit)
