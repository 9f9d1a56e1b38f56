"""A GPU's allocator tells its settings; here it is faked, and the variables are as they are."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
import torch

from gpubench.toggles import usage
from gpubench.toggles.environment.cuda_allocator import CUDA_ALLOCATOR

NAMES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
TEXTS = {
    "expandable-segments": "expandable_segments:True",
    "gc-threshold": "garbage_collection_threshold:0.8",
    "async": "backend:cudaMallocAsync",
}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("value", TEXTS)
def test_the_variables_of_a_value(value):
    assert CUDA_ALLOCATOR.environment(value) == dict.fromkeys(NAMES, TEXTS[value])
    assert CUDA_ALLOCATOR.environment("default") == {}


def test_what_the_user_set_beside_it_stays(monkeypatch):
    own = "max_split_size_mb:512,expandable_segments:True,roundup_power2_divisions:[256:1,512:2,>:4]"
    monkeypatch.setenv(NAMES[0], own)
    rest = "max_split_size_mb:512,roundup_power2_divisions:[256:1,512:2,>:4]"
    assert CUDA_ALLOCATOR.environment("default") == dict.fromkeys(NAMES, rest)
    assert CUDA_ALLOCATOR.environment("async") == dict.fromkeys(NAMES, f"{rest},backend:cudaMallocAsync")
    monkeypatch.setenv(NAMES[0], "max_split_size_mb:512")
    assert CUDA_ALLOCATOR.environment("default") == {}
    monkeypatch.setenv(NAMES[1], "max_split_size_mb:512")
    assert CUDA_ALLOCATOR.environment("default") == {}


def allocator(
    monkeypatch: pytest.MonkeyPatch, *, backend: str = "native", threshold: float = 0.0, growing: int = 0, held: int = 3
) -> None:
    """torch's allocator, of whose segments some can grow."""
    segments: list[dict[str, Any]] = [
        {"is_expandable": index < growing, "total_size": 2 * 2**20} for index in range(held)
    ]
    snapshot = {"segments": segments, "allocator_settings": {"garbage_collection_threshold": threshold}}
    monkeypatch.setattr(torch.cuda.memory, "get_allocator_backend", lambda: backend)
    monkeypatch.setattr(torch.cuda.memory, "_snapshot", lambda device: snapshot)


FAKED: dict[str, dict[str, Any]] = {
    "default": {},
    "expandable-segments": {"growing": 2},
    "gc-threshold": {"threshold": 0.800000011920929},  # as a float tells it
    "async": {"backend": "cudaMallocAsync"},
}


def started_with(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in CUDA_ALLOCATOR.environment(value).items():
        monkeypatch.setenv(name, text)


@pytest.mark.parametrize("value", FAKED)
def test_what_the_allocator_tells_is_compared(kit, monkeypatch, value):
    context = kit.prepare({})
    started_with(value, monkeypatch)
    for other, told in FAKED.items():
        allocator(monkeypatch, **told)
        proof = CUDA_ALLOCATOR.evidence(context, value)
        wanted = value in (other, "default")
        assert proof.took_effect is wanted, (other, proof.detail)


def test_the_detail_says_what_was_found(kit, monkeypatch):
    started_with("expandable-segments", monkeypatch)
    allocator(monkeypatch, growing=2)
    assert CUDA_ALLOCATOR.evidence(kit.prepare({}), "expandable-segments").detail == (
        "torch's allocator of GPU memory is native; 2 of 3 segments, 6 MiB in all, can grow; "
        "its threshold for giving memory back is 0"
    )


@pytest.mark.parametrize("value", TEXTS)
def test_a_process_started_without_the_variables_is_caught(kit, monkeypatch, value):
    allocator(monkeypatch, **FAKED[value])
    proof = CUDA_ALLOCATOR.evidence(kit.prepare({}), value)
    assert proof.took_effect is False
    assert f"PYTORCH_ALLOC_CONF should be {TEXTS[value]!r}" in proof.detail


def test_nothing_allocated_leaves_it_unknown(kit, monkeypatch):
    started_with("expandable-segments", monkeypatch)
    allocator(monkeypatch, held=0)
    assert CUDA_ALLOCATOR.evidence(kit.prepare({}), "expandable-segments").took_effect is None


def test_the_threshold_has_a_limit_to_be_a_part_of(kit, monkeypatch):
    limits: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda part, device: limits.append(part))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 0.5)
    for value in FAKED:
        kit.prepare({"cuda_allocator": value})
    assert limits == [0.5]  # the user's own limit stays


def test_it_is_for_a_gpu_and_not_for_inductors_cuda_graphs(kit):
    assert CUDA_ALLOCATOR.applies(kit.scope()) == "A CPU has no memory that CUDA allocates"
    scope = kit.scope(kit.AMPERE)
    assert CUDA_ALLOCATOR.applies(scope) is None
    assert CUDA_ALLOCATOR.unmet(scope, "async", {"compile": "default"}) is None
    assert (CUDA_ALLOCATOR.unmet(scope, "async", {"compile": "max-autotune"}) or "").startswith(
        "cannot be combined with compile=max-autotune: inductor's CUDA graphs need memory pools"
    )


@pytest.mark.parametrize("value", TEXTS)
def test_the_shell_lines_set_what_the_process_had(value):
    script = usage({"cuda_allocator": value}) + '\necho "$PYTORCH_CUDA_ALLOC_CONF|$PYTORCH_ALLOC_CONF"'
    said = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, env={}).stdout.strip()
    assert said == f"{TEXTS[value]}|{TEXTS[value]}"
