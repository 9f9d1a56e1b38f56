"""What each named part of a model takes of a step."""

from __future__ import annotations

import json
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gpubench.errors import GpubenchError
from gpubench.measure.stages import stage_use
from gpubench.workloads.describe import describe
from gpubench.workloads.loader import Loaded
from gpubench.workloads.workload import Workload
from tests.running import BUSY, gpubench_here

CPU = torch.device("cpu")


class Waits(nn.Module):
    """Takes so many seconds, and so much memory while it runs."""

    def __init__(self, seconds: float, mib: int = 0) -> None:
        super().__init__()
        self.seconds, self.mib = seconds, mib

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        filled = torch.ones(self.mib * 2**18)
        time.sleep(self.seconds)
        return x + filled[:1].sum() * 0

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward(x)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.text, self.denoiser, self.decoder = Waits(0.01), Waits(0.02, mib=256), Waits(0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.text(x)
        for _ in range(3):
            x = self.denoiser(x)
        return self.decoder.encode(x)


def test_time_calls_and_memory_of_each_part() -> None:
    model = Model()
    before = nn.Module.__call__
    text, denoiser, decoder = stage_use(model, ("text", "denoiser", "decoder"), lambda: model(torch.ones(2)), CPU)
    assert nn.Module.__call__ is before
    assert (text.calls, denoiser.calls) == (1, 3)
    assert text.seconds is not None and text.seconds >= 0.01
    assert denoiser.seconds is not None and denoiser.seconds >= 0.06  # a sleep never ends early
    assert (decoder.calls, decoder.seconds) == (0, None)  # called by another method, which nobody sees
    assert text.peak_memory_allocated_bytes is None
    if text.host_peak_resident_bytes is not None and denoiser.host_peak_resident_bytes is not None:
        assert denoiser.host_peak_resident_bytes - text.host_peak_resident_bytes > 128 * 2**20


def test_a_step_that_fails_leaves_modules_as_they_were() -> None:
    before = nn.Module.__call__
    model = Model()
    with pytest.raises(ZeroDivisionError):
        stage_use(model, ("text",), lambda: 1 / 0, CPU)
    assert nn.Module.__call__ is before


def test_compiled_parts_are_seen() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].compile(backend="eager")
    first, second = stage_use(model, ("0", "1"), lambda: model(torch.ones(2, 4)), CPU)
    assert (first.calls, second.calls) == (1, 1)


def workload(**changes: Any) -> Workload:
    fields: dict[str, Any] = {
        "name": "mine", "item": "row", "batch_size": 2, "build": Model, "stages": ("text", "denoiser"),
        "inputs": lambda count, generator: (torch.randn(count, 4, generator=generator),),
    }  # fmt: skip
    return Workload(**(fields | changes))


def test_stages_are_compiled_by_themselves_unless_targets_are_named() -> None:
    assert workload().compile_targets == ("text", "denoiser")
    assert workload(compile_targets=("decoder",)).compile_targets == ("decoder",)
    assert workload(stages=()).compile_targets == ("",)


def test_a_stage_that_is_not_there_is_said() -> None:
    case = Loaded(workload=workload(stages=("vae",), compile_targets=("",)), reference="m", size="default",
                  parameters={}, source_hash=None)  # fmt: skip
    with pytest.raises(GpubenchError, match="has no submodule 'vae', its stage"):
        describe(case, "inference")


def test_rows_tell_their_stages(tmp_path: Path) -> None:
    (tmp_path / "staged.py").write_text(
        textwrap.dedent("""
            import torch
            from torch import nn
            from gpubench import Workload

            def staged():
                return Workload(
                    name="staged", item="row", batch_size=2, stages=("0", "1"),
                    build=lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)),
                    inputs=lambda count, generator: (torch.randn(count, 8, generator=generator),),
                )
            """)
    )
    done = gpubench_here(
        "compare-opts", "staged.py:staged", "--set", "precision=bf16-autocast", "--strategy", "each", "--final-rounds",
        "0", *BUSY, "--format", "json", "--output", "report.json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["workload"]["stages"] == ["0", "1"]
    for row in report["measurements"]:
        assert [(stage["name"], stage["calls"]) for stage in row["stages"]] == [("0", 1), ("1", 1)]
        assert all(stage["seconds"] > 0 for stage in row["stages"])
