"""Whether a step computes less for inputs that it has seen before: a cache keyed by the inputs, which no timed step
fills any more.

Steps on fresh inputs are profiled, the same ones once more, and others: what depends on the data alone (boxes, early
exits) does the same work for the same data, and what happens in every n-th step does not follow the inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpubench.measure.trace import Trace, trace_step
from gpubench.toggles.evidence import compute_operators
from gpubench.worker.prepare import make_batch
from gpubench.worker.seeding import FRESH_INPUTS, seed_step

if TYPE_CHECKING:
    from gpubench.worker.step import Stepper

CLEARLY_LESS = 0.9  # of a first step's work: below it a repeated step is told to compute less


def memoized(stepper: Stepper, seen: Trace, seed: int) -> tuple[str, Trace]:
    """What a step leaves out on inputs that it has seen, empty where nothing, and the trace of a whole step.

    `seen`: the trace of a step on a timed batch, which is the whole step in most models: then one more is enough.
    """
    context, timed = stepper.context, list(stepper.context.batches)
    if not timed or not (first := _fresh(stepper, seed)):
        return "", seen
    context.batches.append(first)

    def again(index: int) -> Trace:
        seed_step(seed, index)
        cuda = context.device.type == "cuda"
        return trace_step(lambda: stepper.run(index), cuda=cuda, before=lambda: stepper.run(0))

    one, two = len(timed), len(timed) + 1
    try:
        whole = again(one)
        if not _is_less(seen, whole):
            return "", seen
        repeated = again(one)
        if not _is_less(repeated, whole) or not (second := _fresh(stepper, seed + 1)):
            return "", seen
        context.batches.append(second)
        other = again(two)
        steps = [(repeated, whole), (again(one), whole), (again(two), other), (seen, other)]
    finally:
        del context.batches[len(timed) :]
    if not all(_is_less(less, full) for less, full in steps):
        return "", seen
    ran, full = len(seen.operators), len(whole.operators)
    return f"on a timed input a step runs {ran} operators, on a fresh one {full}", whole


def _is_less(trace: Trace, whole: Trace) -> bool:
    return any(less < CLEARLY_LESS * full for less, full in zip(_work(trace), _work(whole), strict=True))


def _work(trace: Trace) -> tuple[int, int]:
    # Names as well: what a compiled region without library calls does is in no operator. Matrix products and the like
    # by themselves: an optimizer's many small operators would outnumber them.
    everything = len(trace.operators) + len(trace.kernels) + len(trace.names)
    return everything, len(compute_operators(trace))


def _fresh(stepper: Stepper, seed: int) -> Any:
    """A batch that was never timed, in the place, dtype and layout of the timed ones; None where shapes differ."""
    from torch.utils._pytree import tree_map

    context = stepper.context
    made = make_batch(context.workload, context.batch_size, seed + FRESH_INPUTS)
    try:
        return tree_map(_like, context.batches[0], made)
    except ValueError:  # another shape or structure: more or fewer operators would say nothing
        return None


def _like(timed: Any, fresh: Any) -> Any:
    import torch

    if not isinstance(timed, torch.Tensor) or not isinstance(fresh, torch.Tensor):
        return fresh
    if timed.shape != fresh.shape:
        raise ValueError("another shape")
    return torch.empty_like(timed).copy_(fresh)
