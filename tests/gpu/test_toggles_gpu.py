"""Every value of every toggle on a real GPU, each in a process of its own, with planted faults."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
CAPABILITY = torch.cuda.get_device_capability() if HAS_GPU else (0, 0)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_GPU, reason="needs an NVIDIA GPU: torch.cuda.is_available() is false here"),
]
ampere = pytest.mark.skipif(
    HAS_GPU and CAPABILITY < (8, 0), reason="needs compute capability 8.0 for TF32 and bfloat16"
)

# With as few channels as "tiny" has, cuDNN and cuBLAS may choose kernels without tensor cores whatever the flags allow.
WIDE: dict[str, dict[str, Any]] = {
    "resnet50": {"width": 64, "resolution": 64, "batch_size": 8},
    "unet3d": {"width": 64, "patch": 16},
    "vae": {"channels": [64, 64, 64, 64]},
    "gpt": {"width": 256, "heads": 4, "kv_heads": 4},
}

# Prepares a bundled workload as the worker does, warms it up, traces one step and prints what each toggle proves.
# A toggle named in `faults` is applied with the value given there instead; null: not at all.
PROVE = """
import dataclasses, importlib, json, sys
import torch
from gpubench.measure.trace import trace_step
from gpubench.worker import prepare
from gpubench.worker.step import Stepper
from gpubench.workloads.loader import load

device, reference, mode, configuration, faults, wide = sys.argv[1:4] + [json.loads(text) for text in sys.argv[4:7]]
sizes = importlib.import_module(f"gpubench.workloads.{reference}").SIZES
sizes["tiny"] = dataclasses.replace(sizes["tiny"], **wide)
def faulty(toggle):
    if toggle.name not in faults:
        return toggle
    ran = faults[toggle.name]
    if ran is None:
        return dataclasses.replace(toggle, apply=lambda context, value: None)
    return dataclasses.replace(toggle, apply=lambda context, value: toggle.apply(context, ran))

loaded = load(reference, "tiny", {})
context = prepare.build(loaded, mode, torch.device(device), configuration, 0)
known = prepare.toggles_of(context)
prepare.toggles_of = lambda context: [(faulty(toggle), value) for toggle, value in known]
prepare.apply_toggles(context, prepare.make_batches(loaded, context.batch_size, 2, 0))
stepper = Stepper(context)
for _ in range(6):
    stepper.step()
try:
    context.trace = trace_step(stepper.step, cuda=context.device.type == "cuda")
except Exception as error:
    context.trace_error = str(error)
proofs = {toggle.name: toggle.evidence(context, value) for toggle, value in known}
print("PROOFS " + json.dumps({name: (proof.took_effect, proof.detail) for name, proof in proofs.items()}))
"""


def collect_evidence(
    configuration: dict[str, Any],
    reference: str = "resnet50",
    mode: str = "inference",
    faults: dict[str, Any] | None = None,
    device: str = "cuda",
) -> dict[str, tuple[bool | None, str]]:
    """What each toggle of `configuration` says of itself after a few steps in a fresh process."""
    if mode == "training":
        configuration = {"optimizer": "for-loop", **configuration}
    texts = [device, reference, mode, *map(json.dumps, (configuration, faults or {}, WIDE[reference]))]
    done = subprocess.run([sys.executable, "-c", PROVE, *texts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("PROOFS "))
    proofs = {name: tuple(proof) for name, proof in json.loads(line.removeprefix("PROOFS ")).items()}
    print(json.dumps(proofs, indent=2))  # shown where a test fails, or with -s
    return proofs


PRECISIONS = [
    "torch-default",
    "fp32",
    pytest.param("tf32", marks=ampere),
    pytest.param("bf16-autocast", marks=ampere),
    pytest.param("bf16-weights", marks=ampere),
    "fp16-autocast",
]


@pytest.mark.parametrize("reference", ["resnet50", "vae", "unet3d"])
@pytest.mark.parametrize("value", [*PRECISIONS, "fp16-weights"])
def test_precision_in_inference(value, reference):
    took_effect, detail = collect_evidence({"precision": value}, reference)["precision"]
    assert took_effect is True, detail


@pytest.mark.parametrize("value", PRECISIONS)
def test_precision_in_training(value):
    took_effect, detail = collect_evidence({"precision": value}, mode="training")["precision"]
    assert took_effect is True, detail


@pytest.mark.parametrize("value", [*PRECISIONS, "fp16-weights"])
def test_precision_in_compiled_code(value):
    took_effect, detail = collect_evidence({"precision": value, "compile": "default"})["precision"]
    assert took_effect is True, detail


def test_the_kernels_with_most_time_are_named():
    _, detail = collect_evidence({"precision": "fp16-autocast"})["precision"]
    assert "of the compute kernels' time in fp16" in detail
    assert "most compute time: " in detail


@ampere
def test_fp32_with_torchs_default_flags_is_caught():
    # torch lets cuDNN use TF32 unless it is told not to.
    took_effect, detail = collect_evidence({"precision": "fp32"}, faults={"precision": None})["precision"]
    assert took_effect is False, detail


@ampere
@pytest.mark.parametrize("value", ["tf32", "bf16-autocast", "bf16-weights", "fp16-autocast", "fp16-weights"])
def test_precision_that_was_not_applied_is_caught(value):
    took_effect, detail = collect_evidence({"precision": value}, faults={"precision": None})["precision"]
    assert took_effect is False, detail


@ampere
def test_fp32_that_ran_in_tf32_is_caught():
    took_effect, detail = collect_evidence({"precision": "fp32"}, faults={"precision": "tf32"})["precision"]
    assert took_effect is False, detail


@pytest.mark.parametrize("compiled", ["off", "default"])
@pytest.mark.parametrize("reference", ["resnet50", "vae", "unet3d"])
@pytest.mark.parametrize("value", ["off", "on"])
def test_channels_last(value, reference, compiled):
    took_effect, detail = collect_evidence({"channels_last": value, "compile": compiled}, reference)["channels_last"]
    assert took_effect is True, detail


@pytest.mark.parametrize("reference", ["resnet50", "unet3d"])
def test_channels_last_in_training(reference):
    took_effect, detail = collect_evidence({"channels_last": "on"}, reference, "training")["channels_last"]
    assert took_effect is True, detail


@pytest.mark.parametrize("reference", ["resnet50", "unet3d"])
def test_channels_last_that_was_not_applied_is_caught(reference):
    took_effect, detail = collect_evidence({"channels_last": "on"}, reference, faults={"channels_last": None})[
        "channels_last"
    ]
    assert took_effect is False, detail


MODES = ["off", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("value", MODES)
def test_compile(value, mode):
    took_effect, detail = collect_evidence({"compile": value}, mode=mode)["compile"]
    assert took_effect is True, detail
    assert ("CUDA graphs replayed" in detail) == (value in ("reduce-overhead", "max-autotune"))


@pytest.mark.parametrize("value", MODES[1:])
def test_compile_that_was_not_applied_is_caught(value):
    took_effect, detail = collect_evidence({"compile": value}, faults={"compile": None})["compile"]
    assert took_effect is False, detail


@pytest.mark.parametrize("value", ["reduce-overhead", "max-autotune"])
def test_a_mode_without_its_cuda_graphs_is_caught(value):
    took_effect, detail = collect_evidence({"compile": value}, faults={"compile": "default"})["compile"]
    assert took_effect is False, detail
    assert "no CUDA graph was launched" in detail


@pytest.mark.parametrize("value", ["for-loop", "foreach", "fused"])
@pytest.mark.parametrize("precision", ["fp32", "fp16-autocast"])
def test_optimizer(value, precision):
    took_effect, detail = collect_evidence({"optimizer": value, "precision": precision}, mode="training")["optimizer"]
    assert took_effect is True, detail


@pytest.mark.parametrize(("value", "ran"), [("fused", "for-loop"), ("foreach", "fused"), ("for-loop", "foreach")])
def test_an_optimizer_of_another_implementation_is_caught(value, ran):
    proofs = collect_evidence({"optimizer": value}, mode="training", faults={"optimizer": ran})
    assert proofs["optimizer"][0] is False


@pytest.mark.parametrize("value", ["off", "on"])
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_cudnn_benchmark(value, mode):
    took_effect, detail = collect_evidence({"cudnn_benchmark": value}, mode=mode)["cudnn_benchmark"]
    assert took_effect is True, detail


def test_the_algorithms_are_told():
    proofs = collect_evidence({"cudnn_benchmark": "on", "channels_last": "on"})
    for took_effect, detail in proofs.values():
        assert took_effect is True
        assert "compute time by algorithm: " in detail
        assert "GEMM" in detail or "Winograd" in detail or "convolution " in detail


def test_cudnn_benchmark_that_was_not_applied_is_caught():
    proofs = collect_evidence({"cudnn_benchmark": "on"}, faults={"cudnn_benchmark": None})
    assert proofs["cudnn_benchmark"][0] is False


@pytest.mark.parametrize("value", [1, 3])
def test_batch_size(value):
    assert collect_evidence({"batch_size": value})["batch_size"][0] is True


@pytest.mark.parametrize("size", [0, 16])
def test_tiles(size):
    proofs = collect_evidence({"tile_size": size, "tile_overlap": 8}, "vae")
    assert proofs["tile_size"][0] is True, proofs
    assert proofs["tile_overlap"][0] is True, proofs


def test_tiles_that_were_not_applied_are_caught():
    proofs = collect_evidence({"tile_size": 16, "tile_overlap": 8}, "vae", faults={"tile_size": None})
    assert proofs["tile_size"][0] is False


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("compiled", ["default", "reduce-overhead"])
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16-autocast", marks=ampere), "fp16-autocast"])
def test_everything_at_once_is_never_denied(precision, compiled, mode):
    # Inside a CUDA graph some proofs have only kernels' names to go by: None is honest there, False would be wrong.
    configuration = {"precision": precision, "channels_last": "on", "cudnn_benchmark": "on", "compile": compiled}
    if mode == "training":
        configuration["optimizer"] = "fused"
    proofs = collect_evidence(configuration, mode=mode)
    assert all(took_effect is not False for took_effect, _ in proofs.values()), proofs
    assert proofs["compile"][0] is True, proofs
    if compiled == "default":
        assert all(took_effect is True for took_effect, _ in proofs.values()), proofs


def test_a_tiled_step_replays_cuda_graphs_without_overwriting_its_tiles():
    proofs = collect_evidence({"tile_size": 16, "tile_overlap": 8, "compile": "reduce-overhead"}, "vae")
    assert proofs["compile"][0] is True, proofs
