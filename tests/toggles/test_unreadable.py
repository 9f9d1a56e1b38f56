"""What cannot be read is never claimed: every toggle whose proof is in the trace says None, and why, without one."""

from __future__ import annotations

import pytest
import torch

import gpubench.toggles
from gpubench.measure.trace import Trace
from gpubench.toggles import get

FROM_A_TRACE = {
    "cudnn_benchmark": ("off", "on"),
    "precision": tuple(get("precision").values),
    "channels_last": ("off", "on"),
    "optimizer": ("for-loop", "foreach", "fused"),
    "compile": ("off",),  # compiled values count frames first: their own test
    "checkpointing": ("off",),
    "tile_size": (0, 16),
    "pipeline": ("resident", "host"),
    "transfer": ("pageable",),
    "clip_grad": tuple(get("clip_grad").values),
    "optimizer_kind": ("Adam", "SGD"),
}
# What the others look at instead: the C library, the inputs, the pool of threads; tile_overlap has nothing to read
# where there are no tiles, and asks tile_size where there are. What a loader or the step itself counts.
FROM_ELSEWHERE = {"allocator", "batch_size", "threads", "tile_overlap"}
FROM_ELSEWHERE |= {"loader_workers", "prefetch_factor", "accumulation", "loss_reading", "plateau"}
# Also: the environment at the start and a trial, the weights themselves, and a step of its own.
FROM_ELSEWHERE |= {"affinity", "launch_blocking", "tf32_override", "weight_loading", "keep_fp32", "quantization"}
# And: torch's own flags, what dynamo was told, where the weights are, and passes of their own.
FROM_ELSEWHERE |= {"attention_slices", "fused_qkv", "grad_mode", "sdpa_backend", "xformers_attention", "cuda_graph"}
FROM_ELSEWHERE |= {"compile_backend", "compile_dynamic", "compile_fullgraph", "compile_scope"}
FROM_ELSEWHERE |= {"cuda_allocator", "empty_cache", "offload"}
TRAINING = {"checkpointing", "optimizer", "clip_grad", "optimizer_kind"}


@pytest.fixture(autouse=True)
def cudnn(monkeypatch):
    """cuDNN, which a machine without a GPU lacks."""
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)


def prepared(kit, name, value):
    return kit.prepare({name: value}, mode="training" if name in TRAINING else "inference")


def test_every_toggle_is_held_to_it():
    assert set(gpubench.toggles.bundled_toggles()) == set(FROM_A_TRACE) | FROM_ELSEWHERE


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in FROM_A_TRACE.items() for value in values]
)
def test_a_profiler_that_fails_leaves_it_unknown(kit, name, value):
    context = prepared(kit, name, value)
    context.trace_error = "the profiler failed: RuntimeError: no CUPTI"
    proof = get(name).evidence(context, value)
    assert proof.took_effect is None
    assert proof.detail == "the step could not be profiled: the profiler failed: RuntimeError: no CUPTI"


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in FROM_A_TRACE.items() for value in values]
)
def test_a_trace_that_shows_nothing_at_all_leaves_it_unknown(kit, name, value):
    context = prepared(kit, name, value)
    context.trace = Trace(operators=(), kernels=(), names=frozenset({"cudaDeviceSynchronize"}))
    proof = get(name).evidence(context, value)
    assert proof.took_effect is None
    assert proof.detail == "the profiler recorded nothing of the step"


@pytest.mark.parametrize(
    ("name", "value"),
    [("cudnn_benchmark", "off"), ("precision", "fp32"), ("channels_last", "off"), ("compile", "off"), ("tile_size", 0)],
)
def test_a_baseline_that_a_readable_step_does_not_contradict_stands(kit, name, value):
    context = prepared(kit, name, value)
    context.trace = kit.trace(["aten::relu"])
    assert get(name).evidence(context, value).took_effect is True


def test_tiles_that_cannot_be_read_leave_their_overlap_unknown(kit):
    context = kit.prepare({"tile_size": 16, "tile_overlap": 4})
    context.trace_error = "no CUPTI"
    assert get("tile_overlap").evidence(context, 4).took_effect is None
