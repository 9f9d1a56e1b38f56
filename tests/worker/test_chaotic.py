"""Training whose losses rounding alone changes: what differs there tells nothing, but for what is lost for good."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from gpubench.measure.quality import FP32_TOLERANCE
from gpubench.worker import fingerprint, reference
from gpubench.worker.facts import Facts
from gpubench.worker.fill import Filled
from gpubench.worker.prepare import apply_toggles, build, make_batches
from gpubench.worker.reference import Reference
from gpubench.worker.repeatability import Fresh, study_training
from gpubench.worker.step import Stepper
from gpubench.workloads.loader import Loaded
from gpubench.workloads.workload import Workload


class Waves(nn.Module):
    """The sine of a weighted sum: where it turns fast, the last digits of the weights decide."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate, self.weight = rate, nn.Parameter(torch.randn(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(self.rate * (x @ self.weight))


@pytest.mark.parametrize(("rate", "chaotic"), [(3e4, True), (1.0, False)])
def test_losses_that_rounding_alone_changes_are_undecided(rate: float, chaotic: bool, tmp_path: Path) -> None:
    def fresh() -> Fresh:
        torch.manual_seed(0)
        case = Loaded(
            workload=Workload(
                name="chaotic", item="row", batch_size=2, build=lambda: Waves(rate),
                inputs=lambda count, generator: (torch.randn(count, 16, generator=generator),),
                loss=lambda model, batch: model(*batch).mean() + 5.0,
            ),
            reference="m", size="default", parameters={}, source_hash=None,
        )  # fmt: skip
        context = build(case, "training", torch.device("cpu"), {"optimizer": "for-loop"}, 0)
        batches = make_batches(case, 2, 2, 0)
        built = fingerprint.of(context.model, batches)
        filled = Filled(context.model, 0)
        apply_toggles(context, batches)
        return Fresh(Stepper(context), built, filled)

    update, found = study_training(fresh, lambda _: "", 0, 3, Facts({}, {}, what="plain"))
    assert (found.noise > FP32_TOLERANCE) is chaotic
    reference.save_training(tmp_path, update, found)
    compared = Reference(tmp_path, {"optimizer": "fused"}, found.built)
    off = [loss * 1.2 for loss in found.losses]
    assert compared.check_training(off, update, 0.06).passed is (None if chaotic else False)
    lost = {name: torch.zeros_like(value) for name, value in update.items()}
    assert compared.check_training(off, lost, 0.06).passed is False  # that is no chance
    assert compared.check_training(list(found.losses), update, 0.06).passed is True
