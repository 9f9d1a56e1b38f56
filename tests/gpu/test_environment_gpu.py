"""What is set before a process starts, on a real GPU: each proof in a process of its own, with planted faults."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from gpubench.toggles import get
from gpubench.toggles.environment.launch_blocking import VARIABLE
from gpubench.toggles.fp32_flags import OVERRIDE

HAS_GPU = torch.cuda.is_available()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_GPU, reason="needs an NVIDIA GPU: torch.cuda.is_available() is false here"),
]
ampere = pytest.mark.skipif(
    HAS_GPU and torch.cuda.get_device_capability() < (8, 0), reason="needs compute capability 8.0 for TF32"
)
PROVE = """
import json, sys
import torch
from gpubench.measure.trace import trace_step
from gpubench.worker.prepare import apply_toggles, build, make_batches, toggles_of
from gpubench.worker.step import Stepper
from gpubench.workloads.loader import load

loaded = load("gpt", "tiny", {})
context = build(loaded, "inference", torch.device("cuda"), json.loads(sys.argv[1]), 0)
apply_toggles(context, make_batches(loaded, context.batch_size, 1, 0))
stepper = Stepper(context)
stepper.run(0)
context.trace = trace_step(lambda: stepper.run(0), cuda=True)
proofs = {toggle.name: toggle.evidence(context, value) for toggle, value in toggles_of(context)}
print("PROOFS " + json.dumps({name: (proof.took_effect, proof.detail) for name, proof in proofs.items()}))
"""


def proofs(configuration: dict[str, str], variables: dict[str, str]) -> dict[str, tuple[bool | None, str]]:
    """What each toggle says of itself in a process that starts with these variables."""
    own = {name: text for name, text in os.environ.items() if name not in (VARIABLE, OVERRIDE)}
    command = [sys.executable, "-c", PROVE, json.dumps(configuration)]
    done = subprocess.run(command, env={**own, **variables}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("PROOFS "))
    return {name: tuple(proof) for name, proof in json.loads(line.removeprefix("PROOFS ")).items()}


@pytest.mark.parametrize("value", ["off", "on"])
def test_launch_blocking(value: str) -> None:
    environment = {VARIABLE: "1"} if value == "on" else {}
    took_effect, detail = proofs({"launch_blocking": value}, environment)["launch_blocking"]
    assert took_effect is True, detail


@pytest.mark.parametrize("value", ["off", "on"])
def test_launch_blocking_that_was_not_set_is_caught(value: str) -> None:
    environment = {VARIABLE: "1"} if value == "off" else {}
    took_effect, detail = proofs({"launch_blocking": value}, environment)["launch_blocking"]
    assert took_effect is False, detail


@ampere
@pytest.mark.parametrize("value", ["unset", "on"])
def test_tf32_override(value: str) -> None:
    environment = get("tf32_override").environment
    assert environment is not None
    found = proofs({"tf32_override": value, "precision": "torch-default"}, environment(value))
    for name in ("tf32_override", "precision"):
        assert found[name][0] is True, found


@ampere
def test_tf32_override_that_was_not_set_is_caught() -> None:
    took_effect, detail = proofs({"tf32_override": "on", "precision": "torch-default"}, {})["tf32_override"]
    assert took_effect is False, detail


@ampere
def test_tf32_override_that_the_precision_takes_back_is_caught() -> None:
    took_effect, detail = proofs({"tf32_override": "on", "precision": "fp32"}, {OVERRIDE: "1"})["tf32_override"]
    assert took_effect is False, detail
