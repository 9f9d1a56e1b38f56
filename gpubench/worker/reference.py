"""The plain fp32 model's outputs, and how far a configuration's outputs are from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gpubench.errors import GpubenchError
from gpubench.measure.outputs import collect, load_tensors, no_tensor, on_cpu, save_tensors
from gpubench.measure.quality import compare, compare_training, judge, together
from gpubench.measure.values import Rounding
from gpubench.report.model import OutputQuality, Quality

if TYPE_CHECKING:
    import torch
    from torch import nn

    from gpubench.worker.step import Stepper

# Relative. Summing in another order differs by some 1e-7 in fp32, drawing other random numbers by several per cent.
RANDOM = 1e-4
MODEL = "the same model, plain, in fp32"
WHAT = f"{MODEL} on the same device"
PLACE = "where.txt"  # beside the outputs, if they were made elsewhere


def snapshot(outputs: Any) -> dict[str, torch.Tensor]:
    """A copy of the outputs on the CPU, so that a later step cannot overwrite it.

    Raises GpubenchError if they contain no tensor to compare.
    """
    found = on_cpu(collect(outputs))
    if not found.tensors:
        raise no_tensor(outputs)
    return found.tensors


def left_out(outputs: Any) -> dict[str, str]:
    """What in the outputs cannot be compared, by its path, and why."""
    return on_cpu(collect(outputs)).left_out


def parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the trainable parameters in fp32 on the CPU."""
    return {
        name: value.detach().float().cpu().clone() for name, value in model.named_parameters() if value.requires_grad
    }


def join(parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The outputs of a batch from those of its parts, whose first dimension is the batch."""
    import torch

    rows = [{tensor.shape[:1] for tensor in part.values()} for part in parts]
    if any(len(found) != 1 or found == {()} for found in rows) or any(set(part) != set(parts[0]) for part in parts):
        raise GpubenchError(
            "The fp32 reference does not fit in memory, and not all of its outputs have the batch as first dimension.",
            "Use a smaller batch, or return tensors of which parts of the batch can be joined.",
        )
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def output_spread(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """The relative difference of two plain runs on the same input under other random numbers."""
    found = compare(second, first, tolerance=0.0, what=WHAT)
    if found.relative_error is None:  # other names, shapes or infinities
        return 1.0 if found.passed is False else 0.0
    return found.relative_error


def loss_spread(first: list[float], second: list[float]) -> float:
    """The largest relative difference of two plain trainings under other random numbers."""
    pairs = zip(first, second, strict=True)
    return max((abs(one - other) / abs(one) for one, other in pairs if one), default=0.0)


def save_place(folder: Path, where: str) -> None:
    """Notes that the reference in `folder` was not made as usual, but "on the CPU", say."""
    (folder / PLACE).write_text(where)


def what(folder: Path) -> str:
    """What the reference in `folder` is, as reports say it."""
    return f"{MODEL} {(folder / PLACE).read_text()}" if (folder / PLACE).exists() else WHAT


def save_inference(
    folder: Path,
    outputs: list[dict[str, torch.Tensor]],
    spread: float,
    *,
    left_out: Mapping[str, str] | None = None,
    rounding: Mapping[str, Rounding] | None = None,
    timed: list[dict[str, torch.Tensor]] | None = None,
) -> None:
    """Stores the outputs of each batch, and how much they vary by chance.

    Args:
        left_out: what else the step returned, and why it is not compared.
        rounding: what rounding alone changes.
        timed: the outputs with the model's own parameters, where those checked had some filled.
    """
    for index, one in enumerate(outputs):
        save_tensors(one, folder / f"batch-{index}")
    for index, one in enumerate(timed or ()):
        save_tensors(one, folder / f"timed-{index}")
    facts = {"spread": spread, "left_out": left_out or {}, "rounding": msgspec.to_builtins(rounding or {})}
    (folder / "facts.json").write_text(json.dumps(facts))


def save_training(folder: Path, losses: list[float], update: dict[str, torch.Tensor], spread: float) -> None:
    """Stores the losses and the change of the parameters, and how much the losses vary by chance."""
    save_tensors(update, folder / "update")
    (folder / "facts.json").write_text(json.dumps({"losses": losses, "spread": spread}))


def check_inference(
    folder: Path,
    outputs: dict[int, dict[str, torch.Tensor]],
    tolerance: float,
    *,
    how: str | Mapping[str, str] = "values",
    timed: bool = False,
) -> Quality:
    """The worst quality over the batches in `outputs` (index -> outputs); undecided if the outputs are random.

    Args:
        how: `Workload.compare`.
        timed: they were made with the model's own parameters, none filled.
    """
    facts = json.loads((folder / "facts.json").read_text())
    if facts["spread"] > RANDOM:
        reason = f"the model draws random numbers: two plain fp32 runs on one input differ by {facts['spread']:.2g}"
        return Quality(passed=None, reason=f"{reason}; make them part of the inputs", reference=what(folder))
    rounding = msgspec.convert(facts["rounding"], dict[str, Rounding])
    dropped = [OutputQuality(name=name, passed=None, note=why) for name, why in facts["left_out"].items()]
    steps = []
    for index, one in outputs.items():
        own = folder / f"timed-{index}"
        expected = load_tensors(own if timed and own.exists() else folder / f"batch-{index}")
        steps.append([*judge(one, expected, tolerance=tolerance, rounding=rounding, compare=how), *dropped])
    return together(steps, tolerance=tolerance, what=what(folder))


def check_training(folder: Path, losses: list[float], update: dict[str, torch.Tensor], tolerance: float) -> Quality:
    """The quality of the first seeded training steps; with dropout, beyond what other random numbers change."""
    facts = json.loads((folder / "facts.json").read_text())
    return compare_training(
        losses,
        facts["losses"],
        update,
        load_tensors(folder / "update"),
        tolerance=tolerance,
        what=what(folder),
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
