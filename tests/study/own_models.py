"""User workloads whose own code sets what they compute in. Loaded as FILE.py:NAME."""

import torch
from torch import nn

from gpubench import Workload


def inputs(batch: int, generator: torch.Generator) -> tuple[torch.Tensor]:
    return (torch.randn(batch, 32, generator=generator),)


def half_inputs(batch: int, generator: torch.Generator) -> tuple[torch.Tensor]:
    return (inputs(batch, generator)[0].bfloat16(),)


def half() -> Workload:
    """In bfloat16, built by a script that has no use for gradients, with dropout that samples in inference."""

    def build() -> nn.Module:
        torch.set_grad_enabled(False)
        model = nn.Sequential(nn.Linear(32, 32), nn.Dropout(0.0)).bfloat16().eval()
        model[1].train()
        return model

    return Workload(name="half", item="row", batch_size=4, build=build, inputs=half_inputs)


def single() -> Workload:
    """The same in fp32."""
    return Workload(name="single", item="row", batch_size=4, build=lambda: nn.Linear(32, 32), inputs=inputs)


class Casting(nn.Module):
    """Computes in bfloat16 whatever the dtype of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x.bfloat16(), self.layer.weight.bfloat16()).float()


def casting() -> Workload:
    return Workload(name="casting", item="row", batch_size=4, build=Casting, inputs=inputs)
