"""A language model as libraries have them: keyword arguments in, a dataclass out, and `None` where nothing is given.

gpubench compare-opts examples/keyword_inputs.py:reader --set precision=bf16-autocast
"""

from dataclasses import dataclass

import torch
from torch import nn

from gpubench import Workload


@dataclass
class Answer:
    logits: torch.Tensor  # [B, L, 1000]
    loss: torch.Tensor | None = None


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(1000, 128), nn.Linear(128, 1000)
        self.layer = nn.TransformerEncoderLayer(128, 4, 256, batch_first=True)

    def forward(self, input_ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor | None = None) -> Answer:
        logits = self.head(self.layer(self.embed(input_ids), src_key_padding_mask=mask))
        return Answer(logits, None if labels is None else nn.functional.cross_entropy(logits.flatten(0, 1), labels))


def inputs(count: int, generator: torch.Generator) -> dict[str, torch.Tensor | None]:
    ids = torch.randint(1000, (count, 64), generator=generator)
    return {"input_ids": ids, "mask": torch.arange(64).expand(count, 64) >= 60, "labels": None}


def reader() -> Workload:
    return Workload(
        name="reader", item="token", items_per_sample=64, batch_size=8, build=Reader, inputs=inputs,
        loss=lambda model, batch: model(**{**batch, "labels": batch["input_ids"].flatten()}).loss,
    )  # fmt: skip
