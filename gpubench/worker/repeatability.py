"""What runs of the plain model tell apart: how it is built, what its steps keep, what they draw.

From one seed, a model that is built again must give the same outputs again, else nothing can be compared. A step that
is run twice in a row under one seed and differs keeps state: the sequence of steps from a fresh model is what is
compared then. A step that differs under another seed draws random numbers.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gpubench.worker import fingerprint, reference
from gpubench.worker.facts import SEEDED, Facts, built_differently
from gpubench.worker.fingerprint import INPUT, Fingerprint
from gpubench.worker.reference import RANDOM
from gpubench.worker.seeding import OTHER_NUMBERS, seed_step

if TYPE_CHECKING:
    import torch
    from torch import nn

    from gpubench.worker.step import Stepper

    Outputs = dict[str, torch.Tensor]

ANEW = "build a new model each time that `build` is called"


@dataclass
class Fresh:
    """A model that has just been built, with a fingerprint from then."""

    stepper: Stepper
    built: Fingerprint

    def values(self) -> Fingerprint:
        """What its tensors hold now, on their device."""
        return fingerprint.of(self.stepper.context.model, self.stepper.context.batches)


Build = Callable[[], Fresh]
Infer = Callable[["Stepper", int], "Outputs"]


class Parts:
    """Remembers a model's modules without keeping them alive."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = [weakref.ref(module) for module in model.modules()]

    def in_(self, model: nn.Module) -> bool:
        """Whether `model` has one of them: it was not built anew."""
        return not {id(module) for module in model.modules()}.isdisjoint(
            id(module) for module in (known() for known in self._modules) if module is not None
        )


def sequence(batches: int) -> list[int]:
    """The batches of the first inference steps that are compared: the first one twice, then each of the others."""
    return [0, *range(batches)]


def study_inference(fresh: Build, infer: Infer, seed: int, facts: Facts) -> tuple[list[Outputs], Outputs, Facts]:
    """The outputs of the first steps, the change of the parameters over them (empty: none), and what they tell."""
    first = fresh()
    order = sequence(len(first.stepper.context.batches))
    before = first.values()
    outputs = _run(first.stepper, infer, order, seed)
    in_parts = first.stepper.steps > len(order)  # the whole did not fit into memory
    changed = fingerprint.difference(before, first.values(), rounding=0.0)
    repeat = reference.output_spread(outputs[0], outputs[1])
    stateless = not changed and repeat <= RANDOM
    spread = 0.0
    if stateless:  # else the outputs differ for what the step keeps
        seed_step(seed + OTHER_NUMBERS, 0)
        spread = reference.output_spread(outputs[1], infer(first.stepper, 0))
    facts, parts = replace(facts, built=first.built, spread=spread), Parts(first.stepper.context.model)
    if not stateless:
        seen = f"two steps in a row on one input, from one seed, differ by {repeat:.2g}"
        facts = replace(facts, state=_changes(changed) if changed else seen)
    del first  # two models at once may be too much
    gc.collect()
    try:
        if stateless:
            second = fresh()
            return outputs, {}, replace(facts, problem=_unlike(facts, second, outputs, infer, order[:1], seed))
        if in_parts:
            return outputs, {}, _kept(facts, "its fp32 reference fits into memory only in parts", "use a smaller batch")
        update, facts = _again(fresh, infer, order, seed, facts, outputs, parts)
        chance = facts.problem and not changed  # nothing is seen to be kept
        return outputs, update, replace(facts, state="") if chance else facts
    except Exception as error:  # noqa: BLE001 - some models cannot be built twice in one process
        why = f"it could not be built once more to see whether it begins alike ({type(error).__name__})"
        return outputs, {}, facts if stateless else _kept(facts, why, ANEW)


def _again(
    fresh: Build, infer: Infer, order: Sequence[int], seed: int, facts: Facts, outputs: Sequence[Outputs], parts: Parts
) -> tuple[Outputs, Facts]:
    """The change of the parameters in a step that keeps state, and whether its sequence repeats from a fresh model."""
    second = fresh()
    model = second.stepper.context.model
    if parts.in_(model):
        return {}, _kept(facts, "cannot begin anew", ANEW)
    trained = reference.parameters(model)
    if problem := _unlike(facts, second, outputs, infer, order, seed):
        return {}, replace(facts, problem=problem)
    update = reference.change(model, trained)
    del second, model
    gc.collect()
    others = _run(fresh().stepper, infer, order, seed + OTHER_NUMBERS)
    spread = max(map(reference.output_spread, outputs, others))
    moves = any(bool(value.any()) for value in update.values())
    return update if moves else {}, replace(facts, moves=moves, spread=spread)


def _kept(facts: Facts, why: str, remedy: str) -> Facts:
    return replace(facts, problem=f"the step keeps state ({facts.state}), and {why}; {remedy}")


def _changes(name: str) -> str:
    return f"a step changes {name} in place; clone it first" if name.startswith(INPUT) else f"a step changes {name}"


def _run(stepper: Stepper, infer: Infer, order: Sequence[int], seed: int) -> list[Outputs]:
    found = []
    for index in order:
        seed_step(seed, index)
        found.append(infer(stepper, index))
    return found


def _unlike(
    facts: Facts, fresh: Fresh, outputs: Sequence[Outputs], infer: Infer, order: Sequence[int], seed: int
) -> str:
    """Why a fresh model under the same seeds does not repeat `outputs`; empty where it does."""
    again = _run(fresh.stepper, infer, order, seed)
    found = [reference.output_spread(one, other) for one, other in zip(outputs, again, strict=False)]
    if (worst := max(found)) <= RANDOM:
        return ""
    if name := fingerprint.difference(facts.built, fresh.built):
        return built_differently(name)
    if reference.output_spread(outputs[0], outputs[1]) <= RANDOM:
        return (
            "the model is built differently each time: its parameters are the same and its outputs differ by "
            f"{worst:.2g} in two builds from one seed; {SEEDED}"
        )
    return _beyond_the_seed(worst)


def _beyond_the_seed(spread: float) -> str:
    return (
        f"two plain fp32 runs from one seed differ by {spread:.2g}, even from a fresh model: the step draws random "
        f"numbers that no seed covers, or keeps state outside of the model; {SEEDED}, make random numbers a part of "
        "the inputs, or keep state in the model"
    )


def study_training(fresh: Build, seed: int, steps: int, facts: Facts) -> tuple[Outputs, Facts]:
    """The change of the parameters over the first training steps, and what these tell."""
    first = fresh()
    before, trained = first.values(), reference.parameters(first.stepper.context.model)
    losses, update = reference.training_steps(first.stepper, trained, [], steps, seed)
    inputs = {name: value for name, value in before.items() if name.startswith(INPUT)}
    after = first.values()
    changed = fingerprint.difference(inputs, {name: after[name] for name in inputs}, rounding=0.0)
    state = _changes(changed) if changed else ""
    facts = replace(facts, built=first.built, losses=tuple(losses), state=state)
    parts = Parts(first.stepper.context.model)
    del first
    gc.collect()

    def again(numbers: int, steps: int) -> tuple[str, float]:
        """Another build's first parameter that differs, and how far its losses are off."""
        other = fresh()
        model, unlike = other.stepper.context.model, fingerprint.difference(facts.built, other.built)
        if parts.in_(model):
            reference.restore(model, trained)  # `build` returns the model that was trained before
            unlike = ""
        found, _ = reference.training_steps(other.stepper, reference.parameters(model), [], steps, numbers)
        return unlike, reference.loss_spread(losses[:steps], found)

    # The same weights and inputs; only random numbers that are drawn in the steps (dropout) differ.
    unlike, spread = again(seed + OTHER_NUMBERS, steps)
    problem = built_differently(unlike)
    if not problem and spread > RANDOM:
        _, repeated = again(seed, 1)
        problem = _beyond_the_seed(repeated) if repeated > RANDOM else ""
    return update, replace(facts, problem=problem, spread=spread)
