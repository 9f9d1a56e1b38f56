"""How the memory pass tells a leak from pools that grow for a while: it goes on until it is sure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch

from gpubench.measure.malloc import allocated_bytes
from gpubench.measure.memory import LEAK_BYTES, growth
from gpubench.report.model import Protocol
from gpubench.worker import prepared_model as module
from gpubench.worker.messages import Prepare, WorkloadChoice
from gpubench.worker.prepared_model import PreparedModel
from tests.running import MODELS

MIB = 2**20


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> PreparedModel:
    choice = WorkloadChoice(reference=f"{MODELS}:good", size=None, parameters={}, mode="inference")
    request = Prepare(
        model=0, choice=choice, device="cpu", configuration={}, protocol=Protocol(warmup_min_s=0.0), tolerance=1.0,
        compile_cache=str(tmp_path_factory.mktemp("cache")), reference_folder=None,
    )  # fmt: skip
    resident = PreparedModel(request, lambda _: None)
    resident.prepare()
    return resident


def growth_of(
    ready: PreparedModel,
    levels: Iterator[int],
    monkeypatch: pytest.MonkeyPatch,
    before: int = 0,
    exact: bool = True,
) -> tuple[int | None, int]:
    """What the pass says of memory that goes through `levels` from `before` on, and after how many of its steps."""
    monkeypatch.setattr(ready, "used_when_warm", before)
    monkeypatch.setattr(ready, "steps_when_warm", 10)
    monkeypatch.setattr(ready.stepper, "steps", 30)
    monkeypatch.setattr(module, "is_exact", lambda _: exact)
    monkeypatch.setattr(module, "MEMORY_PASS_S", math.inf)  # on a busy machine too
    steps = 0

    def in_use(_: object) -> int:
        nonlocal steps
        steps += 1
        return next(levels)

    monkeypatch.setattr(module, "in_use", in_use)
    return ready.measure_memory().memory.growth_bytes_per_iteration, steps


def test_level_memory_takes_four_steps(ready: PreparedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert growth_of(ready, itertools.repeat(500 * MIB), monkeypatch) == (0, 4)


def test_pools_that_grow_for_a_while_are_no_leak(ready: PreparedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = itertools.chain((500 * MIB + 10 * MIB * step for step in range(5)), itertools.repeat(540 * MIB))
    growth, steps = growth_of(ready, levels, monkeypatch)
    assert growth == 0
    assert 4 < steps <= 16


def test_a_leak_is_followed_until_it_is_sure(ready: PreparedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert growth_of(ready, itertools.count(500 * MIB, 10 * MIB), monkeypatch) == (10 * MIB, 16)


def test_a_great_leak_is_not_followed_to_the_end_of_memory(
    ready: PreparedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = itertools.count(20 * 2**30, 2**30)  # as it was in the 20 steps before
    assert growth_of(ready, levels, monkeypatch) == (23 * 2**30 // 24, 4)


def test_growth_that_cannot_have_gone_on_is_no_leak(ready: PreparedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    # 3 MiB a step from the first one on, which is not what was added before.
    growth, steps = growth_of(ready, itertools.count(500 * MIB, 3 * MIB), monkeypatch, before=499 * MIB)
    assert (growth, steps) == (46 * MIB // 36, 16)


@pytest.mark.parametrize("size", [16 * 2**10, 256 * 2**10])
def test_a_small_leak_is_told(size: int, ready: PreparedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    for exact in (True, False):
        levels = itertools.count(500 * MIB, size)
        before = 500 * MIB - 21 * size - (0 if exact else MIB)
        growth, steps = growth_of(ready, levels, monkeypatch, before=before, exact=exact)
        assert growth == size
        assert steps == 16


def test_less_than_a_page_a_step_is_followed_no_further(ready: PreparedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert growth_of(ready, itertools.count(500 * MIB, 100), monkeypatch) == (100, 4)


def test_the_grain_of_resident_memory_is_no_leak(ready: PreparedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = itertools.count(500 * MIB, 16 * 2**10)
    assert growth_of(ready, levels, monkeypatch, before=500 * MIB, exact=False) == (0, 4)


def test_one_difference_is_too_few_for_a_small_leak() -> None:
    assert growth([500 * MIB, 500 * MIB + 16 * 2**10], 500 * MIB, 10, exact=True) == 0
    assert growth([500 * MIB, 520 * MIB], 400 * MIB, 6, exact=True) == 20 * MIB


@pytest.mark.skipif(allocated_bytes() is None, reason="needs glibc 2.33")
def test_what_malloc_holds_is_counted_to_the_byte() -> None:
    before = allocated_bytes()
    small, large = torch.ones(4 * 2**10), torch.ones(4 * MIB)
    held = allocated_bytes()
    assert before is not None
    assert held is not None
    assert 0 <= held - before - small.nbytes - large.nbytes < 64 * 2**10
    del large
    assert held - (allocated_bytes() or 0) == pytest.approx(16 * MIB, abs=64 * 2**10)


@pytest.mark.skipif(allocated_bytes() is None, reason="needs glibc 2.33")
def test_a_model_that_keeps_16_kib_a_step_is_told(ready: PreparedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[torch.Tensor] = []
    assert abs(ready.measure_memory().memory.growth_bytes_per_iteration or 0) < LEAK_BYTES
    plain = ready.context.step.forward
    monkeypatch.setattr(ready.context.step, "forward", lambda batch: (kept.append(torch.ones(2**12)), plain(batch))[1])
    ready.end_of_warmup()
    assert ready.measure_memory().memory.growth_bytes_per_iteration == pytest.approx(16 * 2**10, rel=0.2)
