"""Which batch the proof is of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from gpubench.measure import trace
from gpubench.report.model import Protocol
from gpubench.toggles.model_context import ModelContext
from gpubench.worker.messages import Prepare, WorkloadChoice
from gpubench.worker.prepared_model import PreparedModel
from gpubench.worker.step import Stepper
from gpubench.workloads.workload import Workload


@pytest.mark.parametrize("steps", [4, 5])
def test_it_is_the_same_batch_however_many_steps_there_were(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    work = Workload(name="net", item="row", batch_size=2, build=nn.ReLU, inputs=lambda size, generator: ())
    context = ModelContext(
        workload=work, mode="inference", device=torch.device("cpu"), batch_size=2, configuration={}, model=nn.ReLU()
    )
    context.batches = [(torch.ones(2, 3),), (torch.zeros(2, 3),)]
    choice = WorkloadChoice(reference="net", size=None, parameters={}, mode="inference")
    request = Prepare(
        model=0, choice=choice, device="cpu", configuration={}, protocol=Protocol(), tolerance=1.0, compile_cache="",
        reference_folder=None,
    )  # fmt: skip
    model = PreparedModel(request, lambda _: None)
    model.context, model.stepper = context, Stepper(context)
    monkeypatch.setattr(model, "speed_changed", list)
    monkeypatch.setattr(model, "memoized", list)
    seen: list[Any] = []

    def traced(step: Any, **_: Any) -> trace.Trace:
        step()
        seen.append(model.stepper.last_batch)
        return trace.Trace((), (), frozenset())

    monkeypatch.setattr(trace, "trace_step", traced)
    for _ in range(steps):
        model.stepper.step()
    model.collect_evidence()
    assert seen == [0]
