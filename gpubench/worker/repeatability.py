"""What runs of the plain model tell apart: how it is built, what its steps keep, what they draw.

From one seed, a model that is built again must give the same outputs again, else nothing can be compared. A step that
is run twice in a row under one seed and differs keeps state: the sequence of steps from a fresh model is what is
compared then. A step that differs under another seed draws random numbers.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from gpubench.worker import fingerprint, reference
from gpubench.worker.facts import SEEDED, Facts, built_differently
from gpubench.worker.fingerprint import INPUT, Fingerprint
from gpubench.worker.reference import RANDOM, inference_steps
from gpubench.worker.rounding import nudged, rounding
from gpubench.worker.seeding import OTHER_NUMBERS, seed_step

if TYPE_CHECKING:
    import torch
    from torch import nn

    from gpubench.worker.fill import Filled
    from gpubench.worker.reference import Infer
    from gpubench.worker.step import Stepper

    Outputs = dict[str, torch.Tensor]

ANEW = "build a new model each time that `build` is called"


@dataclass
class Fresh:
    """A model that has just been built, with a fingerprint from then, and parameters that hide others filled."""

    stepper: Stepper
    built: Fingerprint
    filled: Filled

    def values(self) -> Fingerprint:
        """What its tensors hold now, on their device."""
        return fingerprint.of(self.stepper.context.model, self.stepper.context.batches)


Build = Callable[[], Fresh]
Unfit = Callable[["Stepper"], str]  # why there is nothing to compare with in what that step computes, or ""


@dataclass
class Studied:
    """What the first steps of inference gave."""

    outputs: list[Outputs]
    facts: Facts
    update: Outputs = field(default_factory=dict)  # change of the parameters over them; empty: none
    timed: list[Outputs] | None = None  # the outputs for each batch with nothing filled, where something was


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


def study_inference(fresh: Build, infer: Infer, unfit: Unfit, seed: int, facts: Facts) -> Studied:
    """The outputs of the first steps, and what they tell."""
    first = fresh()
    order = sequence(len(first.stepper.context.batches))
    before = first.values()
    outputs = inference_steps(first.stepper, infer, order, seed)
    in_parts = first.stepper.steps > len(order)  # the whole did not fit into memory
    changed = fingerprint.difference(before, first.values(), rounding=0.0)
    repeat = reference.output_spread(outputs[0], outputs[1])
    stateless = not changed and repeat <= RANDOM
    facts = replace(facts, built=first.built, left_out=reference.left_out(first.stepper.output))
    parts, timed = Parts(first.stepper.context.model), None
    if stateless:  # else the outputs differ for what the step keeps
        seed_step(seed + OTHER_NUMBERS, 0)
        facts = replace(facts, spread=reference.output_spread(outputs[1], infer(first.stepper, 0)))
        timed = _unfilled(first, infer, order[1:], seed)
        if facts.spread <= RANDOM:
            facts = replace(facts, rounding=rounding(first.stepper, infer, outputs[1:], seed))
    else:
        seen = f"two steps in a row on one input, from one seed, differ by {repeat:.2g}"
        facts = replace(facts, state=_changes(changed) if changed else seen)
    problem = unfit(first.stepper) or (_constant(outputs[1:]) if stateless else "")
    first.filled.restore()  # a model that `build` returns again is filled again
    del first  # two models at once may be too much
    gc.collect()
    found = Studied(outputs, replace(facts, problem=problem), timed=timed)
    if problem:
        return found
    try:
        if stateless:
            problem = _unlike(facts, fresh(), outputs, infer, order[:1], seed)
            return replace(found, facts=replace(facts, problem=problem))
        if in_parts:
            kept = _kept(facts, "its fp32 reference fits into memory only in parts", "use a smaller batch")
            return replace(found, facts=kept)
        update, facts = _again(fresh, infer, order, seed, facts, outputs, parts)
        chance = facts.problem and not changed  # nothing is seen to be kept
        return replace(found, update=update, facts=replace(facts, state="") if chance else facts)
    except Exception as error:  # noqa: BLE001 - some models cannot be built twice in one process
        why = f"it could not be built once more to see whether it begins alike ({type(error).__name__})"
        return found if stateless else replace(found, facts=_kept(facts, why, ANEW))


def _constant(outputs: Sequence[Outputs]) -> str:
    """Why the outputs of different batches say nothing of what is computed from these; empty where they do.

    Zeros and single classes may well be alike by chance.
    """
    first, *others = outputs
    values = [tensor for tensor in first.values() if tensor.is_floating_point() and tensor.numel() > 1]
    if not others or not any(tensor.any() for tensor in values):
        return ""
    if not all(reference.identical(first, other) for other in others):
        return ""
    return (
        "the outputs of different batches are the same, in plain fp32 too: the step returns what it has kept, or what "
        "does not depend on the inputs; return what is computed from them"
    )


def _unfilled(fresh: Fresh, infer: Infer, order: Sequence[int], seed: int) -> list[Outputs] | None:
    """The outputs with the model's own parameters, as they will be timed; None where none is filled."""
    if not fresh.filled.names:
        return None
    fresh.filled.restore()
    outputs = inference_steps(fresh.stepper, infer, order, seed)
    fresh.filled.fill()
    return outputs


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
    others = inference_steps(fresh().stepper, infer, order, seed + OTHER_NUMBERS)
    spread = max(map(reference.output_spread, outputs, others))
    moves = any(bool(value.any()) for value in update.values())
    return update if moves else {}, replace(facts, moves=moves, spread=spread)


def _kept(facts: Facts, why: str, remedy: str) -> Facts:
    return replace(facts, problem=f"the step keeps state ({facts.state}), and {why}; {remedy}")


def _changes(name: str) -> str:
    return f"a step changes {name} in place; clone it first" if name.startswith(INPUT) else f"a step changes {name}"


def _unlike(
    facts: Facts, fresh: Fresh, outputs: Sequence[Outputs], infer: Infer, order: Sequence[int], seed: int
) -> str:
    """Why a fresh model under the same seeds does not repeat `outputs`; empty where it does."""
    again = inference_steps(fresh.stepper, infer, order, seed)
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


def study_training(fresh: Build, unfit: Unfit, seed: int, steps: int, facts: Facts) -> tuple[Outputs, Facts]:
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
    problem = unfit(first.stepper)
    first.filled.restore()
    del first
    gc.collect()
    if problem:
        return update, replace(facts, problem=problem)

    def again(numbers: int, steps: int, *, rounded: bool = False) -> tuple[str, float]:
        """Another build's first parameter that differs, and how far its losses are off; `rounded`: see `nudge`."""
        other = fresh()
        model, unlike = other.stepper.context.model, fingerprint.difference(facts.built, other.built)
        if parts.in_(model):
            reference.restore(model, trained)  # `build` returns the model that was trained before
            unlike = ""
        if rounded:
            nudge(model)
        found, _ = reference.training_steps(other.stepper, reference.parameters(model), [], steps, numbers)
        return unlike, reference.loss_spread(losses[:steps], found)

    # The same weights and inputs; only random numbers that are drawn in the steps (dropout) differ.
    unlike, spread = again(seed + OTHER_NUMBERS, steps)
    problem = built_differently(unlike)
    if not problem and spread > RANDOM:
        _, repeated = again(seed, 1)
        problem = _beyond_the_seed(repeated) if repeated > RANDOM else ""
    noise = 0.0 if problem else again(seed, steps, rounded=True)[1]
    return update, replace(facts, problem=problem, spread=spread, noise=noise)


def nudge(model: nn.Module) -> None:
    """Changes the weights as other roundings in fp32 might have: where losses are chaotic, that alone changes them."""
    import torch

    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.copy_(nudged(parameter, chance))
