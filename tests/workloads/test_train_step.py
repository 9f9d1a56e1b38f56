"""Training steps with other optimizers than one AdamW, and those that are more than one loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn, optim

from gpubench.errors import GpubenchError
from gpubench.measure.trace import trace_step
from gpubench.toggles import all_toggles
from gpubench.toggles.printed import run_lines
from gpubench.worker.prepare import apply_toggles, build, make_batches
from gpubench.worker.settling import TrainingStart
from gpubench.worker.step import Stepper
from gpubench.workloads.describe import describe
from gpubench.workloads.loader import Loaded
from gpubench.workloads.optimizing import KINDS, Optimizer, facts_of, lines
from gpubench.workloads.workload import Workload
from tests.running import BUSY, ROOT, gpubench_here

OPTIMIZER = all_toggles()["optimizer"]


def workload(**changes: Any) -> Workload:
    fields: dict[str, Any] = {
        "name": "mine", "item": "row", "batch_size": 2,
        "build": lambda: nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1)),
        "inputs": lambda count, generator: (torch.randn(count, 4, generator=generator),),
        "loss": lambda model, batch: model(*batch).square().mean(),
    }  # fmt: skip
    return Workload(**(fields | changes))


def prepared(of: Workload, **configuration: Any) -> Stepper:
    case = Loaded(workload=of, reference="mine.py:make", size="default", parameters={}, source_hash=None)
    context = build(case, "training", torch.device("cpu"), {"optimizer": "for-loop", **configuration}, 0)
    apply_toggles(context, make_batches(case, 2, 1, 0))
    return Stepper(context)


def moved(stepper: Stepper) -> list[bool]:
    before = [each.detach().clone() for each in stepper.context.model.parameters()]
    stepper.step()
    return [not torch.equal(old, new) for old, new in zip(before, stepper.context.model.parameters(), strict=True)]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_shows_how_it_is_implemented(kind: str) -> None:
    of = workload(optimizers={"one": Optimizer(kind=kind, settings={"lr": 0.1})})
    scope_facts = facts_of(of.optimizers)
    values = [value for value in ("for-loop", "foreach", "fused") if value != "fused" or kind != "RMSprop"]
    for value in values:
        stepper = prepared(of, optimizer=value)
        assert moved(stepper) == [True] * 4
        stepper.context.trace = trace_step(lambda stepper=stepper: stepper.run(0), cuda=False)
        proofs = {each: OPTIMIZER.evidence(stepper.context, each) for each in values}
        assert {each: proof.took_effect for each, proof in proofs.items()} == {each: each == value for each in values}
        assert f"{kind} has foreach" in proofs[value].detail
    assert scope_facts[0].kind == kind


def test_parts_that_no_optimizer_has_stay_and_each_optimizer_takes_its_step() -> None:
    only = workload(optimizers={"last": Optimizer(parts=("1",))})
    assert moved(prepared(only)) == [False, False, True, True]
    both = workload(optimizers={"first": Optimizer(parts=("0",)), "last": Optimizer(parts=("1",), kind="SGD")})
    assert moved(prepared(both)) == [True] * 4


def test_a_schedule_takes_a_step_after_each_step_and_goes_back_with_the_start() -> None:
    halving = Optimizer(settings={"lr": 1.0}, schedule=lambda made: optim.lr_scheduler.ExponentialLR(made, 0.5))

    def own(model: nn.Module, batch: Any, optimizers: Any) -> torch.Tensor:
        optimizers["one"].zero_grad()
        loss: torch.Tensor = model(*batch).square().mean()
        loss.backward()
        optimizers["one"].step()
        return loss

    for of in (workload(optimizers={"one": halving}), workload(optimizers={"one": halving}, loss=None, train_step=own)):
        stepper = prepared(of)
        rate = stepper.context.optimizers["one"].param_groups[0]
        start = TrainingStart(stepper.context)
        stepper.step()
        stepper.step()
        assert rate["lr"] == 0.25
        start.restore()
        assert stepper.context.optimizers["one"].param_groups[0]["lr"] == 1.0
        stepper.step()
        assert stepper.context.optimizers["one"].param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("precision", ["fp32", "fp16-autocast"])
def test_gradients_are_clipped_as_they_are_unscaled_and_the_schedule_goes_on(precision: str) -> None:
    def change(clip: float | None) -> float:
        """The norm of an update by SGD: at a learning rate of 1 that of the gradients."""
        schedule = lambda made: optim.lr_scheduler.LambdaLR(made, lambda step: 1.0)  # noqa: E731
        one = Optimizer(kind="SGD", settings={"lr": 1.0}, clip=clip, schedule=schedule)
        stepper = prepared(workload(optimizers={"one": one}), precision=precision)
        for steps in range(1, 20):
            before = nn.utils.parameters_to_vector(stepper.context.model.parameters()).detach()
            stepper.step()
            assert stepper.context.schedulers[0].last_epoch == steps
            after = nn.utils.parameters_to_vector(stepper.context.model.parameters()).detach()
            changed = float((after - before).norm())
            if changed:  # a scaler skips the first ones
                return changed
        raise AssertionError("no step was taken")

    whole = change(None)
    assert change(2 * whole) == pytest.approx(whole, rel=1e-2)
    assert change(whole / 2) == pytest.approx(whole / 2, rel=1e-2)


def test_an_own_step_runs_forward_in_autocast_and_backward_outside() -> None:
    seen: dict[str, Any] = {}

    def own(model: nn.Module, batch: Any, optimizers: Any) -> torch.Tensor:
        optimizers["optimizer"].zero_grad()
        out = model(*batch)
        seen["forward"] = out.dtype
        out.register_hook(lambda gradient: seen.update(backward=torch.is_autocast_enabled("cpu")))
        loss: torch.Tensor = out.float().square().mean()
        loss.backward()
        seen["after"] = torch.is_autocast_enabled("cpu")
        optimizers["optimizer"].step()
        return loss

    backward = torch.autograd.backward
    stepper = prepared(workload(loss=None, train_step=own), precision="bf16-autocast")
    assert moved(stepper) == [True] * 4
    assert seen == {"forward": torch.bfloat16, "backward": False, "after": True}
    assert torch.autograd.backward is backward
    assert stepper.loss is not None and stepper.loss.dim() == 0


def test_what_cannot_be_is_said(kit_free_scope: Any) -> None:
    with pytest.raises(GpubenchError, match="has a loss and a train_step"):
        workload(train_step=lambda *_: torch.zeros(()))
    with pytest.raises(GpubenchError, match="has a train_step and an optimizer with clip"):
        workload(loss=None, train_step=lambda *_: torch.zeros(()), optimizers={"one": Optimizer(clip=1.0)})
    for field in ("stages", "toggles", "compile_targets"):
        with pytest.raises(GpubenchError, match=f"The {field} of workload 'mine' are no tuple"):
            workload(**{field: "encoder"})
    for optimizer, words in (
        (Optimizer(kind="LBFGS"), "is LBFGS"),
        (optim.AdamW, "is type"),
        (Optimizer(settings={"foreach": True}), "sets foreach"),
        (Optimizer(settings={"lr": torch.ones(())}), "lr of type Tensor"),
        (Optimizer(clip=0.0), "has clip 0.0"),
        (Optimizer(parts="head"), "The parts of optimizer 'one' of workload 'mine' are a text"),
    ):
        with pytest.raises(GpubenchError, match=words):
            workload(optimizers={"one": optimizer})
    case = Loaded(
        workload=workload(optimizers={"one": Optimizer(parts=("head",))}),
        reference="m", size="default", parameters={}, source_hash=None,
    )  # fmt: skip
    with pytest.raises(GpubenchError, match="no submodule 'head', its trained part"):
        describe(case, "training")
    assert OPTIMIZER.unmet(kit_free_scope, "fused") == "is not there for RMSprop"


@pytest.fixture
def kit_free_scope() -> Any:
    from gpubench.hardware.facts import Device
    from gpubench.toggles.toggle import Scope

    of = workload(optimizers={"one": Optimizer(kind="RMSprop")})
    case = Loaded(workload=of, reference="m", size="default", parameters={}, source_hash=None)
    device = Device(kind="cpu", name="A CPU", cores=2)
    return Scope(device=device, workload=describe(case, "training"), torch_version=(2, 13))


def test_the_printed_lines_make_the_same_optimizers() -> None:
    asked = {
        "first": Optimizer(parts=("0",), kind="Adam", settings={"lr": 2e-4, "betas": (0.5, 0.999)}),
        "rest": Optimizer(parts=("1", "0"), kind="RMSprop"),
    }
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
    text = lines(facts_of(asked), {"foreach": True, "fused": False})
    made = run_lines(text, model=model)["optimizers"]
    assert [type(each).__name__ for each in made.values()] == ["Adam", "RMSprop"]
    assert [len(each.param_groups[0]["params"]) for each in made.values()] == [2, 4]
    assert made["first"].defaults["betas"] == (0.5, 0.999)
    assert "fused" not in text.splitlines()[2]


def test_the_example_with_two_optimizers(tmp_path: Path) -> None:
    reference = f"{ROOT / 'examples' / 'two_optimizers.py'}:gan"
    done = gpubench_here(
        "compare-opts", reference, "--mode", "training", "--set", "optimizer=fused", "--set",
        "precision=bf16-autocast", "--strategy", "each", "--final-rounds", "0", *BUSY, "--format", "json",
        "--output", "report.json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    rows = {row["id"]: row for row in report["measurements"]}
    assert {name: row["status"] for name, row in rows.items()} == dict.fromkeys(
        ("baseline", "optimizer=fused", "precision=bf16-autocast"), "ok"
    )
    assert report["workload"]["own_train_step"] is True
    detail = next(each["detail"] for each in rows["optimizer=fused"]["evidence"] if each["toggle"] == "optimizer")
    assert "1 call of aten::_fused_adam_ and 1 call of aten::_fused_sgd_" in detail
    assert all(row["quality"]["passed"] for row in rows.values())


@pytest.mark.slow
def test_a_step_that_trains_only_one_of_two_is_wrong(tmp_path: Path) -> None:
    text = (ROOT / "examples" / "two_optimizers.py").read_text()
    skips = text.replace(
        '    optimizers["generator"].step()\n',
        '    if not torch.is_autocast_enabled("cpu"):\n        optimizers["generator"].step()\n',
    )
    assert skips != text
    (tmp_path / "skips.py").write_text(skips)
    done = gpubench_here(
        "compare-opts", "skips.py:gan", "--mode", "training", "--set", "precision=bf16-autocast", "--strategy", "each",
        "--final-rounds", "0", *BUSY, "--format", "json", "--output", "report.json", cwd=tmp_path,
    )  # fmt: skip
    row = next(row for row in json.loads(done.stdout)["measurements"] if row["id"] != "baseline")
    assert row["status"] == "wrong"
    assert "did not" in row["reason"]


def test_examples_are_short() -> None:
    for name in ("own_toggle", "two_optimizers", "keyword_inputs", "from_dataset"):
        assert len((ROOT / "examples" / f"{name}.py").read_text().splitlines()) <= 40
