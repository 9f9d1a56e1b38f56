"""The reference is made in parts where the whole does not fit, and knows what chance alone changes."""

from __future__ import annotations

import torch

from gpubench.toggles.model_context import ModelContext
from gpubench.worker.limits import is_out_of_memory
from gpubench.worker.once import infer_in_parts
from gpubench.worker.reference import join, loss_spread, output_spread
from gpubench.worker.step import Stepper
from gpubench.workloads.workload import Workload


def stepper_that_fits(rows: int) -> Stepper:
    """A step that runs out of memory above `rows` rows."""

    def infer(model: torch.nn.Module, batch: tuple[torch.Tensor, ...], options: object) -> torch.Tensor:
        if batch[0].shape[0] > rows:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return model(batch[0])

    workload = Workload(
        name="w", item="row", batch_size=7, build=lambda: torch.nn.Linear(3, 2), infer=infer,
        inputs=lambda batch, generator: (torch.randn(batch, 3, generator=generator),),
    )  # fmt: skip
    batch = workload.inputs(7, torch.Generator().manual_seed(0))
    return Stepper(
        ModelContext(
            workload=workload,
            mode="inference",
            device=torch.device("cpu"),
            batch_size=7,
            configuration={},
            model=torch.nn.Linear(3, 2),
            batches=[batch],
        )
    )


def test_what_does_not_fit_is_made_in_parts() -> None:
    stepper = stepper_that_fits(rows=2)
    batch = stepper.context.batches[0]
    found = infer_in_parts(stepper, 0)["output"]
    assert torch.allclose(found, stepper.context.model(batch[0]))
    assert stepper.context.batches[0] is batch


def test_what_fits_in_no_part_is_an_error() -> None:
    try:
        infer_in_parts(stepper_that_fits(rows=0), 0)
    except RuntimeError as error:
        assert is_out_of_memory(error)
    else:
        raise AssertionError("no error")


def test_other_errors_are_not_tried_again() -> None:
    assert not is_out_of_memory(ValueError("shapes do not match"))
    inner = RuntimeError("wrapped")
    inner.__cause__ = MemoryError()
    assert is_out_of_memory(inner)


def test_spreads() -> None:
    one, other = {"output": torch.ones(4)}, {"output": torch.full((4,), 1.1)}
    assert output_spread(one, one) == 0.0
    assert abs(output_spread(one, other) - 0.1) < 1e-6
    assert loss_spread([1.0, 2.0], [1.0, 2.5]) == 0.25
    assert torch.equal(join([one, other])["output"], torch.tensor([1.0] * 4 + [1.1] * 4))
