"""The plain fp32 model's outputs, and how far a configuration's outputs are from them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gpubench.errors import GpubenchError
from gpubench.measure.quality import SPREADS, compare, compare_training, flatten, load_tensors, save_tensors, worst
from gpubench.report.model import Quality, Value
from gpubench.worker import facts
from gpubench.worker.facts import Facts
from gpubench.worker.fingerprint import Fingerprint
from gpubench.worker.seeding import seed_step

if TYPE_CHECKING:
    import torch
    from torch import nn

    from gpubench.worker.step import Stepper

# Relative. Summing in another order differs by some 1e-7 in fp32, drawing other random numbers by several per cent.
RANDOM = 1e-4
WHAT = "the same model, plain, in fp32 on the same device"


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
        name: value.detach().float().cpu().clone() for name, value in model.named_parameters() if value.requires_grad
    }


def join(parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The outputs of a batch from those of its parts, whose first dimension is the batch."""
    import torch

    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def restore(model: nn.Module, values: dict[str, torch.Tensor]) -> None:
    """Gives the parameters the values that `parameters` copied."""
    import torch

    with torch.no_grad():
        for name, value in model.named_parameters():
            if name in values:
                value.copy_(values[name])


def change(model: nn.Module, before: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """How far the parameters are from what they were `before`."""
    return {name: value - before[name] for name, value in parameters(model).items()}


def output_spread(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """The relative difference of two plain runs on one input; infinite where they have not the same tensors."""
    if list(first) != list(second) or any(first[name].shape != second[name].shape for name in first):
        return math.inf
    quality = compare(second, first, tolerance=RANDOM, what=WHAT)
    if quality.passed is False and not quality.relative_error:  # integers differ, or nothing finite can be compared
        return 0.0 if identical(first, second) else 1.0
    return quality.relative_error or 0.0


def identical(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether all values are the same; NaN is like NaN."""
    import torch

    return list(first) == list(second) and all(
        one.shape == second[name].shape and torch.allclose(one, second[name], rtol=0, atol=0, equal_nan=True)
        for name, one in first.items()
    )


def loss_spread(first: list[float], second: list[float]) -> float:
    """The largest relative difference of two plain trainings."""
    pairs = zip(first, second, strict=True)
    return max((abs(one - other) / abs(one) for one, other in pairs if one), default=0.0)


def save_inference(
    folder: Path, outputs: list[dict[str, torch.Tensor]], update: dict[str, torch.Tensor], facts: Facts
) -> None:
    """Stores the outputs of the first steps, the change of the parameters over them, and what they told."""
    for number, one in enumerate(outputs):
        save_tensors(one, folder / f"step-{number}")
    save_tensors(update, folder / "update")
    facts.save(folder)


def save_training(folder: Path, update: dict[str, torch.Tensor], facts: Facts) -> None:
    """Stores the change of the parameters, and what the first steps told, the losses included."""
    save_tensors(update, folder / "update")
    facts.save(folder)


class Reference:
    """The reference in `folder`, for a model of `configuration` that was `built` so in this process."""

    def __init__(self, folder: Path, configuration: dict[str, Value], built: Fingerprint) -> None:
        self.folder, self.facts = folder, facts.load(folder)
        self.is_same = configuration == self.facts.configuration
        self.problem = self.facts.why_incomparable(built)

    def check_inference(
        self, outputs: Sequence[dict[str, torch.Tensor]], update: dict[str, torch.Tensor], tolerance: float
    ) -> Quality:
        """The worst quality of the first steps; undecided where the reference cannot be compared with."""
        if self.problem:
            return undecided(self.problem)
        found = [self._compare(one, number, tolerance) for number, one in enumerate(outputs)]
        if self.facts.moves:
            found.append(self._training([1.0], [1.0], update, tolerance))
        return self._repeated(_worst(found))

    def check_later(self, outputs: dict[int, dict[str, torch.Tensor]], tolerance: float) -> Quality:
        """The worst quality of later steps on batches (index -> outputs)."""
        if self.problem:
            return undecided(self.problem)
        if self.facts.state:  # later steps have no counterpart in the reference
            stale = self._stale(outputs, tolerance)
            return undecided(f"{stale}, and the step keeps state: {self.facts.state}" if stale else "")
        found = [self._compare(one, index + 1, tolerance) for index, one in outputs.items()]
        quality = _worst(found)
        if quality.passed is not None:
            return quality
        # What was timed last has drawn random numbers of its own: they prove nothing, unless nothing was computed.
        stale = self._stale(outputs, tolerance)
        return msgspec.structs.replace(quality, passed=False if stale else None, reason=stale)

    def check_training(self, losses: list[float], update: dict[str, torch.Tensor], tolerance: float) -> Quality:
        """The quality of the first training steps; with dropout, beyond what other random numbers change."""
        if self.problem:
            return undecided(self.problem)
        return self._repeated(self._training(losses, list(self.facts.losses), update, tolerance))

    def _compare(self, outputs: dict[str, torch.Tensor], number: int, tolerance: float) -> Quality:
        return self._by_chance(compare(outputs, self._outputs(number), tolerance=tolerance, what=WHAT), tolerance)

    def _outputs(self, number: int) -> dict[str, torch.Tensor]:
        return load_tensors(self.folder / f"step-{number}")

    def _by_chance(self, quality: Quality, tolerance: float) -> Quality:
        """`quality`, undecided where it failed by no more than other random numbers explain."""
        spread, error = self.facts.spread, quality.relative_error
        if quality.passed is not False or spread <= RANDOM:
            return quality
        within = error is not None and not quality.non_finite_count and error <= tolerance + SPREADS * spread
        if not (within or math.isinf(spread)):
            return quality
        by = "" if error is None or math.isinf(spread) else f" (by {error:.2g}; by {spread:.2g} from another seed)"
        return undecided(
            "it draws random numbers, and the same seed gives others here than in the reference, as in compiled code "
            f"or another memory layout: the outputs differ{by}; make random numbers a part of the inputs"
        )

    def _training(
        self, losses: list[float], expected: list[float], update: dict[str, torch.Tensor], tolerance: float
    ) -> Quality:
        def compared(spread: float) -> Quality:
            reference_update = load_tensors(self.folder / "update")
            return compare_training(
                losses, expected, update, reference_update, tolerance=tolerance, what=WHAT, spread=spread
            )

        # The same seed mostly gives the same random numbers; where it does not, what they change is allowed.
        strictly = compared(0.0)
        return strictly if strictly.passed or self.facts.spread <= RANDOM else compared(self.facts.spread)

    def _repeated(self, quality: Quality) -> Quality:
        """`quality`, undecided where the reference's own configuration fails: then its outputs do not repeat."""
        if quality.passed is not False or not self.is_same:
            return quality
        return undecided(
            "the same plain fp32 model in another process gives other outputs, so it is built differently each time or "
            f"draws random numbers that no seed covers ({quality.reason}); {facts.SEEDED}"
        )

    def _stale(self, outputs: dict[int, dict[str, torch.Tensor]], tolerance: float) -> str:
        """Why the outputs of different batches look like one that was kept; empty where they do not."""
        for one, other in itertools.pairwise(outputs):
            expected = output_spread(self._outputs(one + 1), self._outputs(other + 1))
            if expected > tolerance and identical(outputs[one], outputs[other]):
                first, second = sorted((one, other))
                return f"the outputs for batches {first} and {second} are the same, the reference's are not"
        return ""


def undecided(reason: str) -> Quality:
    """Nothing could be compared, for that reason."""
    return Quality(passed=None, reason=reason, reference=WHAT)


def _worst(found: Sequence[Quality]) -> Quality:
    return next((quality for quality in found if quality.passed is False), None) or worst(found)


def training_steps(
    stepper: Stepper, before: dict[str, torch.Tensor], losses: list[float], count: int, seed: int
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Runs seeded training steps until `count` losses are known; they and the change of the parameters."""
    for index in range(len(losses), count):
        seed_step(seed, index)
        stepper.run(index % len(stepper.context.batches))
        losses.append(float("nan") if stepper.loss is None else float(stepper.loss))
    return losses, change(stepper.context.model, before)
