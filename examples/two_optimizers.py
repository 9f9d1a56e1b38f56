"""A generative adversarial step: two optimizers, each for its part of the model, and clipping between.

gpubench compare-opts examples/two_optimizers.py:gan --mode training --set optimizer=foreach,fused
"""

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from gpubench import Optimizer, Workload


class Gan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32))
        self.critic = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 1))


def step(model: Gan, batch: tuple[torch.Tensor, ...], optimizers: dict[str, torch.optim.Optimizer]) -> torch.Tensor:
    (noise, real), ones = batch, torch.ones(len(batch[1]), 1, device=batch[1].device)  # [B, 16], [B, 32], [B, 1]
    fake = model.generator(noise)
    model.zero_grad()
    wrong = cross_entropy(model.critic(real), ones) + cross_entropy(model.critic(fake.detach()), 0 * ones)
    wrong.backward()
    nn.utils.clip_grad_norm_(model.critic.parameters(), 1.0)
    optimizers["critic"].step()
    cross_entropy(model.critic(fake), ones).backward()
    optimizers["generator"].step()
    return wrong


def gan() -> Workload:
    generator = Optimizer(parts=("generator",), kind="Adam", settings={"lr": 2e-4, "betas": (0.5, 0.999)})
    critic = Optimizer(parts=("critic",), kind="SGD", settings={"lr": 1e-3, "momentum": 0.9})
    return Workload(
        name="gan", item="row", batch_size=64, build=Gan, infer=lambda model, batch, options: model.generator(batch[0]),
        inputs=lambda n, draw: (torch.randn(n, 16, generator=draw), torch.randn(n, 32, generator=draw)),
        train_step=step, optimizers={"generator": generator, "critic": critic}, compile_targets=("generator", "critic"),
    )  # fmt: skip
