"""How the memory pass tells a leak from pools that grow for a while: it goes on until it is sure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

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
    ready: PreparedModel, levels: Iterator[int], monkeypatch: pytest.MonkeyPatch, before: int = 0
) -> tuple[int | None, int]:
    """What the pass says of memory that goes through `levels` from `before` on, and after how many of its steps."""
    monkeypatch.setattr(ready, "used_at_start", before)
    monkeypatch.setattr(ready.stepper, "steps", 20)
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
    # 19 MiB were added since the start, over 24 steps: no step can have kept 3.
    assert growth_of(ready, itertools.count(500 * MIB, 3 * MIB), monkeypatch, before=490 * MIB) == (19 * MIB // 24, 4)
