"""Each part of the step is a toggle's to replace or wrap, as toggles of other distributions would, with real torch."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from gpubench.report.model import Protocol, Value
from gpubench.toggles import all_toggles
from gpubench.toggles.model_context import ModelContext
from gpubench.toggles.step_parts import StepParts, within
from gpubench.toggles.toggle import EvidenceResult, Stage, Toggle
from gpubench.worker.prepare import apply_toggles, build, make_batches
from gpubench.worker.reference import parameters, training_steps
from gpubench.worker.step import Stepper
from gpubench.workloads.loader import Loaded
from gpubench.workloads.workload import Workload

PARTS = {
    "inference": ["fetch", "transfer", "forward", "collect"],
    "training": ["fetch", "transfer", "zero_grad", "forward", "backward", "update", "collect"],
}


def inputs(batch_size: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    return torch.randn(batch_size, 4, generator=generator), torch.randn(batch_size, 2, generator=generator)


def infer(model: nn.Module, batch: tuple[torch.Tensor, ...], options: object) -> torch.Tensor:
    return model(batch[0])


def loss(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return 0.01 * nn.functional.mse_loss(model(batch[0]), batch[1])  # small, so that scaled fp16 gradients stay finite


WORKLOAD = Workload(
    name="tiny", item="row", batch_size=8, build=lambda: nn.Linear(4, 2), inputs=inputs, infer=infer, loss=loss
)


def planted(
    name: str, apply: Callable[[ModelContext, Value], None], stage: Stage = Stage.OPTIMIZER, **traits: Any
) -> Toggle:
    return Toggle(
        name=name,
        summary="A planted toggle.",
        values={"off": "as it is", "on": "changed", 2: "twice", 4: "four times"},
        stage=stage,
        usage=lambda value, _: "",
        apply=lambda context, value: apply(context, value) if value != "off" else None,
        evidence=lambda context, value: EvidenceResult(took_effect=True, detail="planted"),
        source="planted",
        **traits,
    )


def stepper(
    monkeypatch: pytest.MonkeyPatch, toggle: Toggle, value: Value, mode: str, device: str = "cpu", **more: Value
) -> Stepper:
    """The worker's own step with `toggle` at `value`."""
    monkeypatch.setitem(all_toggles(), toggle.name, toggle)
    configuration = {**({"optimizer": "for-loop"} if mode == "training" else {}), **more, toggle.name: value}
    loaded = Loaded(workload=WORKLOAD, reference="tiny", size="default", parameters={}, source_hash=None)
    context = build(loaded, mode, torch.device(device), configuration, 0)  # type: ignore[arg-type]
    apply_toggles(context, make_batches(loaded, context.batch_size, 2, 0))
    return Stepper(context)


@pytest.mark.parametrize("mode", PARTS)
def test_every_part_can_be_wrapped_and_runs_once_in_its_order(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def watch(context: ModelContext, value: Value) -> None:
        for name in PARTS["training"]:
            setattr(context.step, name, within(functools.partial(noted, name), getattr(context.step, name)))

    @contextlib.contextmanager
    def noted(name: str) -> Any:
        ran.append(name)
        yield

    stepper(monkeypatch, planted("watch", watch), "on", mode).step()
    assert ran == PARTS[mode]


def test_the_protocol_names_the_parts() -> None:
    parts = [field.name for field in dataclasses.fields(StepParts) if field.name != "grad_mode"]
    assert Protocol().timed_parts == ", ".join(parts) == ", ".join(PARTS["training"])


def inference_mode(context: ModelContext, value: Value) -> None:
    context.step.grad_mode = torch.inference_mode


@pytest.mark.parametrize(("value", "inference"), [("off", False), ("on", True)])
def test_inference_mode_as_a_toggle(value: Value, inference: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    step = stepper(monkeypatch, planted("inference_mode", inference_mode), value, "inference")
    step.run(0)
    assert (step.output.is_inference(), step.output.requires_grad) == (inference, False)


def test_a_build_that_switches_gradients_off_is_trained_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    step = stepper(monkeypatch, planted("nothing", lambda context, value: None), "off", "training")
    torch.set_grad_enabled(False)
    before = [parameter.detach().clone() for parameter in step.context.model.parameters()]
    step.step()
    assert not any(map(torch.equal, before, step.context.model.parameters()))


def test_gradients_are_on_where_a_toggle_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def enable(context: ModelContext, value: Value) -> None:
        context.step.grad_mode = torch.enable_grad

    step = stepper(monkeypatch, planted("gradients", enable), "on", "inference")
    step.run(0)
    assert step.output.requires_grad


def accumulate(context: ModelContext, value: Value) -> None:
    """One update from `value` parts of the batch, one after the other."""
    forward, count = context.step.forward, int(value)

    def in_parts(batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        *first, last = zip(*(tensor.chunk(count) for tensor in batch), strict=True)
        total = torch.zeros(())
        for part in first:
            share = forward(part) / count
            context.step.backward(share)
            total += share.detach()
        return forward(last) / count + total

    context.step.forward = in_parts


@pytest.mark.parametrize("precision", ["fp32", "fp16-autocast"])
def test_gradient_accumulation_as_a_toggle(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    toggle = planted("accumulation", accumulate)
    found = []
    for value in ("off", 2, 4):
        step = stepper(monkeypatch, toggle, value, "training", precision=precision)
        step.context.model.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
        found.append(training_steps(step, parameters(step.context.model), [], 3, 0))
    assert rows == [8] * 3 + [4] * 6 + [2] * 12
    (losses, update), *others = found
    assert any(change.abs().max() > 1e-4 for change in update.values())
    for other_losses, other in others:
        assert other_losses == pytest.approx(losses, rel=1e-2)
        for name, change in update.items():
            torch.testing.assert_close(other[name], change, rtol=0.05, atol=1e-5)


def test_an_accumulation_over_steps_wraps_update_and_zero_grad(monkeypatch: pytest.MonkeyPatch) -> None:
    def every_other(context: ModelContext, value: Value) -> None:
        update, zero_grad, steps = context.step.update, context.step.zero_grad, [0]

        def count() -> None:
            steps[0] += 1
            if steps[0] % 2 == 0:
                update()

        context.step.update = count
        context.step.zero_grad = lambda: zero_grad() if steps[0] % 2 == 0 else None

    step = stepper(monkeypatch, planted("every_other", every_other), "on", "training")
    weight = step.context.model.weight
    before, seen = weight.detach().clone(), []
    for _ in range(4):
        step.run(0)
        seen.append((weight.grad.clone(), not torch.equal(weight, before)))
        before = weight.detach().clone()
    assert [moved for _, moved in seen] == [False, True, False, True]
    torch.testing.assert_close(seen[1][0], 2 * seen[0][0])


def test_inputs_are_on_the_device_before_the_step_and_transfer_leaves_them(monkeypatch: pytest.MonkeyPatch) -> None:
    step = stepper(monkeypatch, planted("nothing", lambda context, value: None), "on", "inference")
    batch = step.context.batches[0]
    assert step.context.step.transfer(batch) is batch is step.context.step.fetch(0)


def test_inputs_that_stay_on_the_host_are_moved_in_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def stay(context: ModelContext, value: Value) -> None:
        context.inputs_resident = False

    # "meta" is a device that every machine has.
    resident = stepper(monkeypatch, planted("host", stay, Stage.MODEL), "off", "inference", device="meta")
    assert {tensor.device.type for batch in resident.context.batches for tensor in batch} == {"meta"}
    step = stepper(monkeypatch, planted("host", stay, Stage.MODEL), "on", "inference", device="meta")
    step.run(0)
    assert {tensor.device.type for batch in step.context.batches for tensor in batch} == {"cpu"}
    assert step.output.device.type == "meta"


def test_a_static_input_and_output_as_a_manual_graph_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def static(context: ModelContext, value: Value) -> None:
        forward, kept = context.step.forward, {}

        def replay(batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
            if not kept:
                kept["in"] = tuple(tensor.clone() for tensor in batch)
                kept["out"] = torch.empty(batch[0].shape[0], 2)
            for mine, theirs in zip(kept["in"], batch, strict=True):
                mine.copy_(theirs)
            return kept["out"].copy_(forward(kept["in"]))

        context.step.forward = replay
        context.step.collect = torch.clone

    step = stepper(monkeypatch, planted("static", static), "on", "inference")
    outputs = []
    for index in (0, 1):
        step.run(index)
        outputs.append(step.output)
    for index, output in enumerate(outputs):
        torch.testing.assert_close(output, step.context.model(step.context.batches[index][0]).detach())
