"""The reference is made in parts where the whole does not fit, and knows what chance alone changes."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from gpubench.executor.outcome import Outcome
from gpubench.executor.process_flags import flags_of
from gpubench.report.model import Protocol
from gpubench.toggles.model_context import ModelContext
from gpubench.worker import facts, once
from gpubench.worker.limits import is_out_of_memory
from gpubench.worker.messages import MakeReference, Prepared, SamplesTaken, WorkloadChoice
from gpubench.worker.once import infer_in_parts
from gpubench.worker.prepare import apply_toggles, build, load_choice, make_batches
from gpubench.worker.reference import Reference, join, loss_spread, output_spread, snapshot
from gpubench.worker.step import Stepper
from gpubench.workloads.workload import Workload

MODELS = Path(__file__).parents[1] / "faults" / "fault_models.py"


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
    assert output_spread(one, {"output": torch.ones(3)}) == math.inf  # another number of rows each time
    assert torch.equal(join([one, other])["output"], torch.tensor([1.0] * 4 + [1.1] * 4))


def test_the_reference_knows_what_cannot_be_compared(tmp_path: Path) -> None:
    choice = WorkloadChoice(reference=f"{MODELS}:mixed", size=None, parameters={}, mode="inference")
    once.make_reference(
        MakeReference(choice=choice, device="cpu", configuration={}, protocol=Protocol(), folder=str(tmp_path))
    )
    loaded, mode = load_choice(choice)
    context = build(loaded, mode, torch.device("cpu"), {"precision": "bf16-autocast"}, Protocol().seed)
    apply_toggles(context, make_batches(loaded, context.batch_size, 1, Protocol().seed))
    stepper = Stepper(context)
    stepper.run(0)
    built = facts.load(tmp_path).built
    compared = Reference(tmp_path, context.configuration, built, loaded.workload.compare)
    found = compared.check_later({0: snapshot(stepper.output)}, 0.06)
    assert found.passed is True, found
    assert {each.name for each in found.outputs if each.passed} == {"output.order", "output.logits"}
    for said in ("output.text: it is text", "output.none: it is empty", "output.noise: rounding in fp32 alone changes"):
        assert said in found.not_compared
    prepared = Prepared(
        items_per_step=1, compile_time_s=0.1, seconds_per_iteration=0.1, warmup_iterations=30, steady=True,
        quality=found, flags=[], phases_s={},
    )  # fmt: skip
    sampled = SamplesTaken(
        samples_s=[0.1] * 20, device_samples_s=None, iterations_per_sample=1, unmet="", started=0.0, ended=2.0
    )
    flags = flags_of(Outcome("ok", "", "", prepared, sampled))
    assert [(flag.kind, flag.effect) for flag in flags] == [("partly_checked", "caution")]
    assert flags[0].detail == found.not_compared
