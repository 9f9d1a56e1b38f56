"""Toggles of memory, of the CUDA allocator and of what is compiled, on a real GPU, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from gpubench.toggles import get

HAS_GPU = torch.cuda.is_available()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_GPU, reason="needs an NVIDIA GPU: torch.cuda.is_available() is false here"),
]

# Prepares a bundled workload as the worker does, warms it up, traces a step and prints what each toggle proves, with
# the sum of what an inference step gives. Toggles in `idle` are not applied.
PROVE = """
import dataclasses, json, sys
import torch
from gpubench.measure.trace import trace_step
from gpubench.toggles.toggle import in_force
from gpubench.worker import prepare
from gpubench.worker.step import Stepper
from gpubench.workloads.batch import tensors
from gpubench.workloads.loader import load

reference, mode, configuration, idle = sys.argv[1:3] + [json.loads(text) for text in sys.argv[3:5]]
loaded = load(reference, "tiny", {})
context = prepare.build(loaded, mode, torch.device("cuda"), configuration, 0)
known = [
    (dataclasses.replace(toggle, apply=in_force) if toggle.name in idle else toggle, value)
    for toggle, value in prepare.toggles_of(context)
]
prepare.toggles_of = lambda context: known
prepare.apply_toggles(context, prepare.make_batches(loaded, context.batch_size, 2, 0))
stepper = Stepper(context)
for _ in range(4):
    stepper.step()
for each in context.when_warm:
    each()
context.trace = trace_step(lambda: stepper.run(0), cuda=True)
proofs = {toggle.name: toggle.evidence(context, value) for toggle, value in known}
told = {name: (proof.took_effect, proof.detail) for name, proof in proofs.items()}
output = stepper.loss if mode == "training" else next(iter(tensors(stepper.output)))
print("PROOFS " + json.dumps([told, float(output.double().sum())]))
"""


def prove(
    reference: str, mode: str, configuration: dict[str, Any], *, idle: tuple[str, ...] = ()
) -> tuple[dict[str, tuple[bool | None, str]], float]:
    """What each toggle of `configuration` says of itself, and a number of the step's output."""
    variables: dict[str, str] = {}
    for name, value in configuration.items():
        if (environment := get(name).environment) and name not in idle:
            variables |= environment(value)
    if mode == "training":
        configuration = {"optimizer": "for-loop", **configuration}
    texts = [reference, mode, json.dumps(configuration), json.dumps(idle)]
    done = subprocess.run(
        [sys.executable, "-c", PROVE, *texts], env=os.environ | variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("PROOFS "))
    told, number = json.loads(line.removeprefix("PROOFS "))
    print(json.dumps(told, indent=2))  # shown where a test fails, or with -s
    return {name: tuple(proof) for name, proof in told.items()}, number


@pytest.mark.parametrize("value", ["default", "expandable-segments", "gc-threshold", "async"])
def test_cuda_allocator(value: str) -> None:
    took_effect, detail = prove("resnet50", "training", {"cuda_allocator": value})[0]["cuda_allocator"]
    assert took_effect is True, detail


@pytest.mark.parametrize("value", ["expandable-segments", "gc-threshold", "async"])
def test_a_process_without_the_variables_is_caught(value: str) -> None:
    proofs, _ = prove("resnet50", "inference", {"cuda_allocator": value}, idle=("cuda_allocator",))
    assert proofs["cuda_allocator"][0] is False


@pytest.mark.parametrize("value", ["off", "on"])
def test_empty_cache(value: str) -> None:
    took_effect, detail = prove("resnet50", "inference", {"empty_cache": value})[0]["empty_cache"]
    assert took_effect is True, detail
    assert ("emptied once" in detail) is (value == "on")


def test_a_cache_that_was_not_emptied_is_caught() -> None:
    proofs, _ = prove("resnet50", "inference", {"empty_cache": "on"}, idle=("empty_cache",))
    assert proofs["empty_cache"][0] is False


OFFLOADED = [("diffusion", "stages"), ("dit", "stages"), ("dit", "layers"), ("vit_mae", "layers"), ("gpt", "layers")]


@pytest.mark.parametrize(("reference", "value"), OFFLOADED)
def test_offload(reference: str, value: str) -> None:
    _, expected = prove(reference, "inference", {"offload": "off"})
    proofs, number = prove(reference, "inference", {"offload": value})
    assert proofs["offload"][0] is True, proofs
    assert number == pytest.approx(expected, rel=1e-3, abs=1e-2)


@pytest.mark.parametrize(("reference", "value"), OFFLOADED[:3])
def test_an_offload_that_was_not_applied_is_caught(reference: str, value: str) -> None:
    proofs, _ = prove(reference, "inference", {"offload": value}, idle=("offload",))
    assert proofs["offload"][0] is False, proofs


@pytest.mark.parametrize(
    ("reference", "value", "scope"),
    [("dit", "stages", "targets"), ("dit", "layers", "blocks"), ("gpt", "layers", "blocks")],
)
def test_offload_beside_compiled_code(reference: str, value: str, scope: str) -> None:
    _, expected = prove(reference, "inference", {"offload": "off"})
    configuration = {"offload": value, "compile": "default", "compile_scope": scope}
    proofs, number = prove(reference, "inference", configuration)
    assert all(took_effect is True for took_effect, _ in proofs.values()), proofs
    assert number == pytest.approx(expected, rel=1e-3, abs=1e-2)


@pytest.mark.parametrize("compiled", ["off", "default", "reduce-overhead"])
@pytest.mark.parametrize("value", ["off", "every-block", "every-second-block", "selective"])
def test_checkpointing(value: str, compiled: str) -> None:
    _, expected = prove("vit_mae", "training", {"checkpointing": "off"})
    proofs, loss = prove("vit_mae", "training", {"checkpointing": value, "compile": compiled})
    took_effect, detail = proofs["checkpointing"]
    assert took_effect is not False, detail
    assert took_effect is True or compiled != "off", detail
    assert loss == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("value", ["every-block", "every-second-block", "selective"])
def test_checkpointing_that_was_not_applied_is_caught(value: str) -> None:
    proofs, _ = prove("vit_mae", "training", {"checkpointing": value}, idle=("checkpointing",))
    assert proofs["checkpointing"][0] is False, proofs


@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune-no-cudagraphs"])
def test_blocks_are_compiled_in_every_mode(mode: str) -> None:
    configuration = {"compile": mode, "compile_scope": "blocks", "compile_fullgraph": "on", "compile_dynamic": "off"}
    proofs, _ = prove("gpt", "inference", configuration)
    assert all(proofs[name][0] is True for name in configuration if name != "compile"), proofs
    assert proofs["compile"][0] is not False or mode == "max-autotune-no-cudagraphs", proofs
