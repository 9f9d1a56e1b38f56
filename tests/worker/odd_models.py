"""Tiny workloads whose steps keep state, draw random numbers, or are built differently each time."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from gpubench import Workload


def rows(batch: int, generator: torch.Generator) -> tuple[torch.Tensor]:
    return (torch.randn(batch, 16, generator=generator),)


def square(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return model(batch[0]).square().mean()


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(torch.relu(self.one(x)))


def work(build: Any, **more: Any) -> Workload:
    return Workload(**{"name": "odd", "item": "row", "batch_size": 8, "build": build, "inputs": rows, **more})


plain = work(Plain, loss=square)

# ----- state


class Counter(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        return super().forward(x) * self.steps


class Average(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(24))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.one(x))
        self.mean.mul_(0.9).add_(hidden.mean(0), alpha=0.1)
        return self.two(hidden - self.mean)


class Halves(Plain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.mul_(0.5))


class HardlyChanges(Plain):
    """What it does to its input is too little to be seen in the output."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x[0, 0] += 1.0
        return super().forward(x[1:])


def own_step(rate: float) -> Workload:
    """A step with its own optimizer, whose output alone hardly tells whether that works."""
    optimizers: dict[nn.Module, torch.optim.Optimizer] = {}

    def step(model: nn.Module, batch: tuple[torch.Tensor, ...], options: object) -> torch.Tensor:
        if model not in optimizers:
            optimizers[model] = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
        with torch.enable_grad():
            loss = square(model, batch)
            loss.backward()
        optimizers[model].step()
        optimizers[model].zero_grad()
        return loss.detach()

    return work(Plain, infer=step)


counter, average, halves, hardly = work(Counter), work(Average), work(Halves), work(HardlyChanges)
trains, idles = own_step(1e-4), own_step(0.0)
halves_in_training = work(Halves, loss=square)
_once = Plain()
not_anew = work(lambda: _once, loss=square)
_counter = Counter()
never_begins_anew = work(lambda: _counter)


class OnlyOne(Plain):
    made = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).made += 1
        if self.made > 1:
            raise MemoryError("no room for a second one")


class OnlyOneCounter(OnlyOne, Counter):
    made = 0


only_one, only_one_counter = work(OnlyOne), work(OnlyOneCounter)


class Adversary(nn.Module):
    """Two networks with an optimizer each and noise of their own, as a GAN has them."""

    def __init__(self) -> None:
        super().__init__()
        self.makes, self.judges = nn.Linear(4, 16), nn.Linear(16, 1)
        self.optimizers = [torch.optim.Adam(part.parameters(), 1e-3) for part in (self.makes, self.judges)]


def adversarial(model: Adversary, batch: tuple[torch.Tensor, ...], options: object) -> tuple[torch.Tensor, ...]:
    losses = []
    for optimizer, sign in zip(model.optimizers, (-1, 1), strict=True):
        with torch.enable_grad():
            made = model.judges(model.makes(torch.randn(len(batch[0]), 4)))
            loss = F.softplus(sign * made).mean() + F.softplus(-model.judges(batch[0])).mean()
            model.zero_grad()
            loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return tuple(losses)


gan = work(Adversary, infer=adversarial)

# ----- random numbers


class Dropout(Plain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(F.dropout(torch.relu(self.one(x)), 0.3, training=True))


class NumpyNoise(Plain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + 0.1 * torch.from_numpy(np.random.randn(*x.shape).astype("float32")))


class Sample(Plain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.multinomial(torch.softmax(super().forward(x), -1), 4)


class Unseeded(Plain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * (1 + np.random.default_rng().random())


dropout, numpy_noise, sample, unseeded = (work(kind, loss=square) for kind in (Dropout, NumpyNoise, Sample, Unseeded))

# ----- builds and inputs


class NumpyWeights(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.one.weight.data = torch.from_numpy(np.random.randn(24, 16).astype("float32"))


class OtherWeights(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.two.weight.data += int.from_bytes(os.urandom(4), "big") / 2**32


class OtherFactor(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.factor = 1 + time.monotonic() % 100

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.factor


class Noisy(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(np.random.randn(16).astype("float32")) + torch.rand(1)


def numpy_rows(batch: int, generator: torch.Generator) -> tuple[torch.Tensor]:
    return (torch.from_numpy(np.random.randn(batch, 16).astype("float32")),)


def loaded_rows(batch: int, generator: torch.Generator) -> tuple[torch.Tensor]:
    return (next(iter(DataLoader(Noisy(), batch, num_workers=2))),)


def other_rows(batch: int, generator: torch.Generator) -> tuple[torch.Tensor]:
    return (torch.from_numpy(np.random.default_rng().standard_normal((batch, 16)).astype("float32")),)


numpy_weights, other_weights = work(NumpyWeights, loss=square), work(OtherWeights, loss=square)
other_factor = work(OtherFactor)
numpy_inputs, loaded_inputs = work(Plain, inputs=numpy_rows), work(Plain, inputs=loaded_rows)
other_inputs = work(Plain, inputs=other_rows)

# ----- what was computed before


class Remembers(Plain):
    """Keeps what it has computed; `key` says what of an input it goes by."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key, self.known = key, dict[Any, torch.Tensor]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        key = {"id": id, "place": torch.Tensor.data_ptr, "value": lambda x: float(x.sum())}[self.key](x)
        if key not in self.known:
            self.known[key] = super().forward(x)
        return self.known[key]


class RemembersAProduct(nn.Module):
    """Inductor makes no kernel of its own for it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.known = nn.Linear(16, 16), dict[int, torch.Tensor]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.data_ptr() not in self.known:
            self.known[x.data_ptr()] = self.product(x)
        return self.known[x.data_ptr()]

    def product(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class Teacher(nn.Module):
    """Learns from a second network, whose answers it keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher, self.pupil = Remembers("id"), Plain()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = self.teacher(x)
        return F.mse_loss(self.pupil(x), wanted)


class AsTheDataAsk(Plain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        for _ in range(int(x.abs().sum() * 1000) % 20):
            y = torch.relu(y) + x
        return y


class EveryFew(Plain):
    def __init__(self, every: int) -> None:
        super().__init__()
        self.every, self.steps = every, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        return self.two(self.one(super().forward(x))) if self.steps % self.every == 0 else super().forward(x)


class Stale(Plain):
    """Returns what it has computed first, whatever it is given."""

    first: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.first is None:
            self.first = super().forward(x)
        return self.first


stale = work(Stale)


def remembers(key: str = "id") -> Workload:
    return work(lambda: Remembers(key))


def every(steps: int = 2) -> Workload:
    return work(lambda: EveryFew(steps))


remembers_a_product = work(RemembersAProduct)
teacher = work(Teacher, infer=None, loss=lambda model, batch: model(batch[0]))
as_the_data_ask = work(AsTheDataAsk)
