"""The plain fp32 model's outputs, and how far a configuration's outputs are from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpubench.errors import GpubenchError
from gpubench.measure.quality import compare, compare_training, flatten, load_tensors, save_tensors, worst
from gpubench.report.model import Quality

if TYPE_CHECKING:
    import torch
    from torch import nn

    from gpubench.worker.step import Stepper

# Relative. Summing in another order differs by some 1e-7 in fp32, drawing other random numbers by several per cent.
RANDOM = 1e-4
WHAT = "the same model, plain, in strict fp32 (its own fp64 where it is built in that), on the same device"


def snapshot(outputs: Any) -> dict[str, torch.Tensor]:
    """A copy of the outputs on the CPU, so that a later step cannot overwrite it.

    Raises GpubenchError if they contain no tensor to compare.
    """
    found = {name: tensor.detach().cpu().clone() for name, tensor in flatten(outputs)}
    if not found:
        raise GpubenchError(
            f"The inference step returned a {type(outputs).__name__} without tensors.",
            "Return a tensor, or tensors in tuples, lists, mappings or dataclasses.",
        )
    return found


def parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the trainable parameters in fp32 on the CPU."""
    return {
        name.replace("_orig_mod.", ""): value.detach()
        .float()
        .cpu()
        .clone()  # as where torch.compile has not wrapped it
        for name, value in model.named_parameters()
        if value.requires_grad
    }


def join(parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The outputs of a batch from those of its parts, whose first dimension is the batch."""
    import torch

    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def output_spread(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """The relative difference of two plain runs on the same input under other random numbers."""
    return compare(second, first, tolerance=0.0, what=WHAT).relative_error or 0.0


def loss_spread(first: list[float], second: list[float]) -> float:
    """The largest relative difference of two plain trainings under other random numbers."""
    pairs = zip(first, second, strict=True)
    return max((abs(one - other) / abs(one) for one, other in pairs if one), default=0.0)


def save_inference(folder: Path, outputs: list[dict[str, torch.Tensor]], spread: float) -> None:
    """Stores the outputs of each batch, and how much they vary by chance."""
    for index, one in enumerate(outputs):
        save_tensors(one, folder / f"batch-{index}")
    (folder / "facts.json").write_text(json.dumps({"spread": spread}))


def save_training(folder: Path, losses: list[float], update: dict[str, torch.Tensor], spread: float) -> None:
    """Stores the losses and the change of the parameters, and how much the losses vary by chance."""
    save_tensors(update, folder / "update")
    (folder / "facts.json").write_text(json.dumps({"losses": losses, "spread": spread}))


def check_inference(folder: Path, outputs: dict[int, dict[str, torch.Tensor]], tolerance: float) -> Quality:
    """The worst quality over the batches in `outputs` (index -> outputs); undecided if the outputs are random."""
    spread = json.loads((folder / "facts.json").read_text())["spread"]
    if spread > RANDOM:
        reason = f"the model draws random numbers: two plain fp32 runs on one input differ by {spread:.2g}"
        return Quality(passed=None, reason=f"{reason}; make them part of the inputs", reference=WHAT)
    return worst(
        [
            compare(one, load_tensors(folder / f"batch-{index}"), tolerance=tolerance, what=WHAT)
            for index, one in outputs.items()
        ]
    )


def check_training(folder: Path, losses: list[float], update: dict[str, torch.Tensor], tolerance: float) -> Quality:
    """The quality of the first seeded training steps; with dropout, beyond what other random numbers change."""
    facts = json.loads((folder / "facts.json").read_text())
    return compare_training(
        losses,
        facts["losses"],
        update,
        load_tensors(folder / "update"),
        tolerance=tolerance,
        what=WHAT,
        spread=facts["spread"] if facts["spread"] > RANDOM else 0.0,
    )


def training_steps(
    stepper: Stepper, before: dict[str, torch.Tensor], losses: list[float], count: int
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Runs training steps until `count` losses are known; they and the change of the parameters since `before`."""
    for index in range(len(losses), count):
        stepper.run(index % len(stepper.context.batches))
        losses.append(float("nan") if stepper.loss is None else float(stepper.loss))
    after = parameters(stepper.context.model)
    return losses, {name: value - before[name] for name, value in after.items()}
