"""What the plain fp32 model gives, and how far a configuration's outputs are from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpubench.measure.quality import compare, compare_training, flatten, load_tensors, save_tensors, worst
from gpubench.results.schema import Quality

if TYPE_CHECKING:
    import torch
    from torch import nn

    from gpubench.worker.step import Stepper

WHAT = "the same model, plain, in fp32 on the same device"


def snapshot(outputs: Any) -> dict[str, torch.Tensor]:
    """A copy of the outputs on the CPU, so that a later step cannot overwrite it."""
    return {name: tensor.detach().cpu().clone() for name, tensor in flatten(outputs)}


def parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the trainable parameters in fp32 on the CPU."""
    return {
        name: value.detach().float().cpu().clone() for name, value in model.named_parameters() if value.requires_grad
    }


def change(after: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`after` - `before`, by name."""
    return {name: value - before[name] for name, value in after.items()}


def save_inference(folder: Path, outputs: list[dict[str, torch.Tensor]]) -> None:
    """Keeps the outputs of each batch."""
    for index, one in enumerate(outputs):
        save_tensors(one, folder / f"batch-{index}")


def save_training(folder: Path, losses: list[float], update: dict[str, torch.Tensor]) -> None:
    """Keeps the losses and the change of the parameters."""
    save_tensors(update, folder / "update")
    (folder / "losses.json").write_text(json.dumps([repr(loss) for loss in losses]))


def check_inference(folder: Path, outputs: dict[int, dict[str, torch.Tensor]], tolerance: float) -> Quality:
    """The worst quality over the batches in `outputs` (index -> outputs)."""
    return worst(
        [
            compare(one, load_tensors(folder / f"batch-{index}"), tolerance=tolerance, what=WHAT)
            for index, one in outputs.items()
        ]
    )


def check_training(folder: Path, losses: list[float], update: dict[str, torch.Tensor], tolerance: float) -> Quality:
    """The quality of the first seeded training steps."""
    expected = [float(loss) for loss in json.loads((folder / "losses.json").read_text())]
    return compare_training(losses, expected, update, load_tensors(folder / "update"), tolerance=tolerance, what=WHAT)


def training_steps(
    stepper: Stepper, before: dict[str, torch.Tensor], first: int, count: int, losses: list[float]
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Runs training steps until `count` losses are known; they and the change of the parameters since `before`."""
    for index in range(first, count):
        stepper.run(index % len(stepper.subject.batches))
        losses.append(float("nan") if stepper.loss is None else float(stepper.loss))
    return losses, change(parameters(stepper.subject.model), before)
