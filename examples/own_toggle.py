"""A workload with an optimization of its own, which gpubench tries, proves and recommends like any other.

gpubench compare-opts examples/own_toggle.py:pooled --set pooling=mean,matmul --set precision=bf16-autocast
"""

import torch
from torch import nn

from gpubench import EvidenceResult, Stage, Toggle, Workload


class Pooled(nn.Module):
    def __init__(self, options: dict[str, str]) -> None:
        super().__init__()
        self.pooling = options["pooling"]
        self.body, self.head = nn.Conv2d(3, 64, 3, padding=1), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, 3, H, W] -> [B, 10]
        y = self.body(x).relu().flatten(2)  # [B, 64, H * W]
        ones = y.new_full((y.shape[2], 1), 1 / y.shape[2])
        return self.head((y @ ones).squeeze(2) if self.pooling == "matmul" else y.mean(2))


POOLING = Toggle(
    name="pooling",
    summary="How the average over the image is computed.",
    values={"mean": "torch.mean", "matmul": "a product with a vector of 1 / N"},
    stage=Stage.MODEL,
    usage=lambda value, scope: f'model = Pooled({{"pooling": "{value}"}})',
    evidence=lambda context, value: EvidenceResult(context.model.pooling == value, f"it is {context.model.pooling}"),
    source="this file",
)


def pooled() -> Workload:
    return Workload(
        name="pooled", item="image", batch_size=8, build=Pooled, toggles=(POOLING,),
        inputs=lambda count, generator: (torch.randn(count, 3, 64, 64, generator=generator),),
    )  # fmt: skip
