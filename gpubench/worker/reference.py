"""The plain fp32 model's outputs, and how far a configuration's outputs are from them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gpubench.errors import GpubenchError
from gpubench.measure.outputs import collect, load_tensors, no_tensor, on_cpu, save_tensors
from gpubench.measure.quality import FP32_TOLERANCE, SPREADS, compare, compare_training, judge, together
from gpubench.report.model import OutputQuality, Quality, Value
from gpubench.worker import facts
from gpubench.worker.facts import Facts
from gpubench.worker.fingerprint import Fingerprint
from gpubench.worker.seeding import seed_step
from gpubench.workloads.building import plain_name

if TYPE_CHECKING:
    import torch
    from torch import nn

    from gpubench.worker.step import Stepper

    Tensors = dict[str, torch.Tensor]
    Infer = Callable[[Stepper, int], Tensors]

# Relative. Summing in another order differs by some 1e-7 in fp32, drawing other random numbers by several per cent.
RANDOM = 1e-4
MODEL = "the same model, plain, in strict fp32 (its own fp64 where it is built in that)"
WHAT = f"{MODEL}, on the same device"


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
        plain_name(name): value.detach().float().cpu().clone()  # as where torch.compile has not wrapped it
        for name, value in model.named_parameters()
        if value.requires_grad
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


def restore(model: nn.Module, values: dict[str, torch.Tensor]) -> None:
    """Gives the parameters the values that `parameters` copied."""
    import torch

    with torch.no_grad():
        for name, value in model.named_parameters():
            if plain_name(name) in values:
                value.copy_(values[plain_name(name)])


def change(model: nn.Module, before: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """How far the parameters are from what they were `before`."""
    return {name: value - before[name] for name, value in parameters(model).items()}


def output_spread(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """The relative difference of two plain runs on one input; infinite where they have not the same tensors."""
    if list(first) != list(second) or any(first[name].shape != second[name].shape for name in first):
        return math.inf
    quality = compare(second, first, tolerance=0.0, what=WHAT)
    if quality.passed is False and not quality.relative_error:  # nothing finite can be compared
        return 0.0 if identical(first, second) else 1.0
    return quality.relative_error or 0.0


def identical(first: Tensors, second: Tensors) -> bool:
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
    folder: Path, outputs: list[Tensors], update: Tensors, facts: Facts, timed: list[Tensors] | None = None
) -> None:
    """Stores the outputs of the first steps, the change of the parameters over them, and what they told.

    timed: the outputs for each batch with the model's own parameters, where those of the first steps had some filled.
    """
    for number, one in enumerate(outputs):
        save_tensors(one, folder / f"step-{number}")
    for index, one in enumerate(timed or ()):
        save_tensors(one, folder / f"timed-{index}")
    save_tensors(update, folder / "update")
    facts.save(folder)


def save_training(folder: Path, update: Tensors, facts: Facts) -> None:
    """Stores the change of the parameters, and what the first steps told, the losses included."""
    save_tensors(update, folder / "update")
    facts.save(folder)


class Reference:
    """The reference in `folder`, for a model of `configuration` that was `built` so in this process.

    how: `Workload.compare`.
    """

    def __init__(
        self,
        folder: Path,
        configuration: dict[str, Value],
        built: Fingerprint,
        how: str | Mapping[str, str] = "values",
    ) -> None:
        self.folder, self.facts, self.how = folder, facts.load(folder), how
        self.is_same = configuration == self.facts.configuration
        self.problem = self.facts.why_incomparable(built)

    def check_inference(
        self, outputs: Sequence[dict[str, torch.Tensor]], update: dict[str, torch.Tensor], tolerance: float
    ) -> Quality:
        """The worst quality of the first steps; undecided where the reference cannot be compared with."""
        if self.problem:
            return self._undecided(self.problem)
        quality = self._compare([(one, f"step-{number}") for number, one in enumerate(outputs)], tolerance)
        if self.facts.moves and quality.passed is not False:
            moved = self._training([1.0], [1.0], update, tolerance)
            quality = quality if moved.passed else moved
        return self._repeated(quality)

    def check_later(self, outputs: dict[int, dict[str, torch.Tensor]], tolerance: float) -> Quality:
        """The worst quality of later steps on batches (index -> outputs)."""
        if self.problem:
            return self._undecided(self.problem)
        if self.facts.state:  # later steps have no counterpart in the reference
            stale = self._stale(outputs, tolerance)
            return self._undecided(f"{stale}, and the step keeps state: {self.facts.state}" if stale else "")
        quality = self._compare([(one, self._timed(index)) for index, one in outputs.items()], tolerance)
        if quality.passed is not None:
            return quality
        # What was timed last has drawn random numbers of its own: they prove nothing, unless nothing was computed.
        stale = self._stale(outputs, tolerance)
        return msgspec.structs.replace(quality, passed=False if stale else None, reason=stale)

    def check_training(self, losses: list[float], update: dict[str, torch.Tensor], tolerance: float) -> Quality:
        """The quality of the first training steps; with dropout, beyond what other random numbers change."""
        if self.problem:
            return self._undecided(self.problem)
        return self._repeated(self._training(losses, list(self.facts.losses), update, tolerance))

    def _compare(self, steps: Sequence[tuple[Tensors, str]], tolerance: float) -> Quality:
        """The quality of each step's outputs against those in the subfolder of that name."""
        dropped = [OutputQuality(name=name, passed=None, note=why) for name, why in self.facts.left_out.items()]
        judged = []
        for outputs, name in steps:
            found = judge(
                outputs,
                load_tensors(self.folder / name),
                tolerance=tolerance,
                rounding=self.facts.rounding,
                compare=self.how,
            )
            judged.append([*found, *dropped])
        return self._by_chance(together(judged, tolerance=tolerance, what=self.facts.what), tolerance)

    def _timed(self, index: int) -> str:
        """Where the outputs for that batch are, made with the parameters that are timed."""
        return f"timed-{index}" if (self.folder / f"timed-{index}").exists() else f"step-{index + 1}"

    def _undecided(self, reason: str) -> Quality:
        return Quality(passed=None, reason=reason, reference=self.facts.what)

    def _by_chance(self, quality: Quality, tolerance: float) -> Quality:
        """`quality`, undecided where it failed by no more than other random numbers explain."""
        spread, error = self.facts.spread, quality.relative_error
        if quality.passed is not False or spread <= RANDOM:
            return quality
        within = error is not None and not quality.non_finite_count and error <= tolerance + SPREADS * spread
        if not (within or math.isinf(spread)):
            return quality
        by = "" if error is None or math.isinf(spread) else f" (by {error:.2g}; by {spread:.2g} from another seed)"
        return self._undecided(
            "it draws random numbers, and the same seed gives others here than in the reference, as in compiled code "
            f"or another memory layout: the outputs differ{by}; make random numbers a part of the inputs"
        )

    def _training(
        self, losses: list[float], expected: list[float], update: dict[str, torch.Tensor], tolerance: float
    ) -> Quality:
        def compared(spread: float) -> Quality:
            reference_update = load_tensors(self.folder / "update")
            return compare_training(
                losses, expected, update, reference_update, tolerance=tolerance, what=self.facts.what, spread=spread
            )

        # The same seed mostly gives the same random numbers; where it does not, what they change is allowed.
        strictly = compared(0.0)
        if strictly.passed or self.facts.spread > RANDOM:
            return strictly if strictly.passed else compared(self.facts.spread)
        # Where rounding alone changes the losses by more than fp32 is allowed, only what is lost for good can be told.
        error, noise = strictly.relative_error, self.facts.noise
        if error is None or noise <= FP32_TOLERANCE or not compared(math.inf).passed:
            return strictly
        return self._undecided(
            f"a loss is {error:.2g} off the reference's, and rounding in fp32 alone changes it by {noise:.2g}: these "
            "steps are chaotic, which more items in a batch or a smaller learning rate may mend"
        )

    def _repeated(self, quality: Quality) -> Quality:
        """`quality`, undecided where the reference's own configuration fails: then its outputs do not repeat."""
        if quality.passed is not False or not self.is_same:
            return quality
        return self._undecided(
            "the same plain fp32 model in another process gives other outputs, so it is built differently each time or "
            f"draws random numbers that no seed covers ({quality.reason}); {facts.SEEDED}"
        )

    def _stale(self, outputs: dict[int, dict[str, torch.Tensor]], tolerance: float) -> str:
        """Why the outputs of different batches look like one that was kept; empty where they do not."""
        for one, other in itertools.pairwise(outputs):
            expected = output_spread(*(load_tensors(self.folder / self._timed(index)) for index in (one, other)))
            if expected > tolerance and identical(outputs[one], outputs[other]):
                first, second = sorted((one, other))
                return f"the outputs for batches {first} and {second} are the same, the reference's are not"
        return ""


def inference_steps(stepper: Stepper, infer: Infer, order: Sequence[int], seed: int) -> list[Tensors]:
    """The outputs of a seeded step on each batch in `order`."""
    found = []
    for index in order:
        seed_step(seed, index)
        found.append(infer(stepper, index))
    return found


def training_steps(
    stepper: Stepper, before: dict[str, torch.Tensor], losses: list[float], count: int, seed: int
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Runs seeded training steps until `count` losses are known; they and the change of the parameters."""
    for index in range(len(losses), count):
        seed_step(seed, index)
        stepper.run(index % len(stepper.context.batches))
        losses.append(float("nan") if stepper.loss is None else float(stepper.loss))
    return losses, change(stepper.context.model, before)
