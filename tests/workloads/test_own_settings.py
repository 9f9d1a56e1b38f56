"""What a workload's own code asks for is seen before anything is measured."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from gpubench.workloads.describe import describe
from gpubench.workloads.loader import Loaded
from gpubench.workloads.workload import Workload
from gpubench.workloads.workload_facts import WorkloadFacts


def facts(build: Callable[[], nn.Module], **changes: Any) -> WorkloadFacts:
    fields: dict[str, Any] = {
        "name": "mine", "item": "row", "batch_size": 2, "build": build,
        "inputs": lambda batch_size, generator: (torch.randn(batch_size, 4, generator=generator),),
    }  # fmt: skip
    workload = Workload(**(fields | changes))
    loaded = Loaded(workload=workload, reference="mine.py:make", size="default", parameters={}, source_hash="x")
    return describe(loaded, "inference")


def in_bf16(n: int, generator: torch.Generator) -> tuple[torch.Tensor]:
    return (torch.randn(n, 4, generator=generator).bfloat16(),)


class Own(nn.Module):
    """Computes under autocast of its own, or in another dtype than its weights have."""

    def __init__(self, autocast: bool, reads: bool = False) -> None:
        super().__init__()
        self.layer, self.autocast, self.reads = nn.Linear(4, 4), autocast, reads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.reads:
            float(x.sum())  # fails on the meta device, so that the step is watched on the CPU
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            if not self.autocast:
                return nn.functional.linear(x.bfloat16(), self.layer.weight.bfloat16()).float()
            return self.layer(x).float()


def attention() -> nn.Module:
    return nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).bfloat16()


def by_default() -> nn.Module:
    torch.set_default_dtype(torch.float64)
    return nn.Linear(4, 4)


@pytest.mark.parametrize(
    ("build", "changes", "dtypes", "autocast"),
    [
        (lambda: nn.Linear(4, 4), {}, ["fp32"], []),
        (lambda: nn.Linear(4, 4).bfloat16(), {"inputs": in_bf16}, ["bf16"], []),
        (lambda: nn.Linear(4, 4).double(), {"infer": lambda model, batch, _: model(batch[0].double())}, ["fp64"], []),
        (attention, {"inputs": lambda n, g: (torch.randn(n, 3, 4, generator=g).bfloat16(),)}, ["bf16"], []),
        (by_default, {}, ["fp64"], []),
        (lambda: Own(autocast=True), {}, ["fp32"], ["bf16"]),  # the meta device has no autocast
        (lambda: Own(autocast=True, reads=True), {}, ["bf16"], ["bf16"]),
        (lambda: Own(autocast=False), {}, ["bf16"], []),
        (lambda: Own(autocast=False, reads=True), {}, ["bf16"], []),
        (lambda: nn.Sequential(nn.Linear(4, 4), Own(autocast=False)), {}, ["bf16", "fp32"], []),
        (lambda: nn.Sequential(nn.Linear(4, 4), Own(autocast=False, reads=True)), {}, ["bf16", "fp32"], []),
        (lambda: nn.Linear(3, 4).bfloat16(), {}, ["bf16"], []),  # the step fails, and the weights tell
    ],
)  # fmt: skip
def test_dtypes_and_autocast(build: Any, changes: dict[str, Any], dtypes: list[str], autocast: list[str]) -> None:
    found = facts(build, **changes)
    assert (found.dtypes, found.autocast) == (dtypes, autocast)


def test_a_step_that_cannot_be_watched_is_noted() -> None:
    (note,) = facts(lambda: nn.Linear(3, 4)).notes
    assert "could not be tried on a small batch beforehand (RuntimeError: mat1 and mat2 shapes" in note
    assert facts(lambda: nn.Linear(4, 4)).notes == []


def compiled_function() -> nn.Module:
    model = nn.Linear(4, 4)
    model.forward = torch.compile(model.forward)
    return model


def compiled_in_place() -> nn.Module:
    model = nn.Linear(4, 4)
    model.compile()
    return model


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: nn.Linear(4, 4), False),
        (lambda: torch.compile(nn.Linear(4, 4)), True),
        (lambda: nn.Sequential(torch.compile(nn.Linear(4, 4))), True),
        (compiled_in_place, True),
        (compiled_function, True),
    ],
)
def test_a_model_that_compiles_itself(build: Callable[[], nn.Module], expected: bool) -> None:
    assert facts(build).compiles_itself is expected


def test_parts_left_in_another_mode_are_noted() -> None:
    def build() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 4), nn.Dropout()).eval()
        model[1].train()
        return model

    assert "in training mode (1)" in facts(build).notes[0]
    assert facts(lambda: nn.Linear(4, 4)).notes == []


CHANGES = {
    "torch.set_grad_enabled(False)": {"torch.is_grad_enabled()": "False"},
    "torch.use_deterministic_algorithms(True)": {"torch.are_deterministic_algorithms_enabled()": "True"},
    "torch.set_num_threads(7)": {"torch.get_num_threads()": "7"},
    "torch.set_default_dtype(torch.float64)": {"torch.get_default_dtype()": "float64"},
    "torch.set_autocast_enabled('cpu', True)": {"autocast on cpu": "bfloat16"},
    "torch.set_float32_matmul_precision('medium')": {"torch.backends.mkldnn.matmul.fp32_precision": "bf16"},
    "torch.backends.cudnn.allow_tf32 = False": {
        "torch.backends.cudnn.conv.fp32_precision": "fp32",
        "torch.backends.cudnn.rnn.fp32_precision": "fp32",
    },
}


def test_settings_that_code_changes_for_the_whole_process() -> None:
    """Each in a child that knows what torch began with, as a worker knows it from its fork server."""
    code = f"""
import os, torch
from gpubench.worker import process_settings
process_settings.at_start()
for line in {list(CHANGES)!r}:
    if os.fork() == 0:
        exec(line)
        print(repr((line, process_settings.changed("cuda" if "cudnn" in line else "cpu"))), flush=True)
        os._exit(0)
    os.wait()
print(repr(("", process_settings.changed("cpu") | process_settings.changed("cuda"))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = dict(eval(line) for line in done.stdout.splitlines())
    assert found == {**CHANGES, "": {}}


def test_tf32_that_the_environment_asks_for_is_no_default_of_torchs() -> None:
    code = """
from gpubench.toggles import fp32_flags
from gpubench.worker import process_settings
process_settings.at_start()
print(repr((process_settings.changed("cuda"), process_settings.notes("cuda"), process_settings.notes("cpu"))))
fp32_flags.forbid()
print(repr(fp32_flags.permitted("cuda")))
"""
    environment = {**os.environ, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    (settings, on_cuda, on_cpu), strict = map(eval, done.stdout.splitlines())
    assert settings == {"torch.backends.cuda.matmul.fp32_precision": "tf32"}
    assert [note.split("=")[0] for note in on_cuda] == ["TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"] and on_cpu == []
    assert strict == {}
