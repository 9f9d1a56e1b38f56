"""What rounding of weights and inputs alone changes in the plain model's outputs."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gpubench.measure.values import Rounding, rounding_of
from gpubench.worker.reference import inference_steps
from gpubench.workloads.batch import map_tensors

if TYPE_CHECKING:
    import torch

    from gpubench.worker.reference import Infer, Tensors
    from gpubench.worker.step import Stepper

NUDGE = 1e-6  # relative; one rounding in fp32 is off by up to 6e-8, and a network makes hundreds in a row


def nudged(tensor: torch.Tensor, chance: torch.Generator) -> torch.Tensor:
    """The floating-point `tensor` as other roundings in fp32 might have left it."""
    import torch

    return tensor * (1 + NUDGE * torch.randn(tensor.shape, generator=chance).to(tensor))


def rounding(stepper: Stepper, infer: Infer, plain: Sequence[Tensors], seed: int) -> dict[str, Rounding]:
    """What rounding changes in the outputs `plain` of each batch."""
    import torch

    context, chance = stepper.context, torch.Generator().manual_seed(0)
    changed = [parameter for parameter in context.model.parameters() if parameter.is_floating_point()]
    own, batches = [parameter.detach().to("cpu", copy=True) for parameter in changed], context.batches

    def nudge(tensor: torch.Tensor) -> torch.Tensor:
        return nudged(tensor, chance)

    def change(how: Callable[[torch.Tensor], torch.Tensor]) -> None:
        with torch.no_grad():
            for parameter in changed:
                parameter.copy_(how(parameter))
            context.batches = [
                map_tensors(lambda each: how(each).to(each) if each.is_floating_point() else each, batch)
                for batch in context.batches
            ]

    try:
        change(nudge)
        (near,) = inference_steps(stepper, infer, [0], seed)
        change(lambda tensor: tensor.bfloat16())
        far = inference_steps(stepper, infer, range(len(context.batches)), seed)
        return rounding_of(plain, near, far, context.workload.compare)
    except Exception:  # noqa: BLE001 - whatever a model refuses; outputs are then held to the tolerance alone
        traceback.print_exc()
        return {}
    finally:  # `build` may return the same model again
        context.batches = batches
        with torch.no_grad():
            for parameter, value in zip(changed, own, strict=True):
                parameter.copy_(value)
