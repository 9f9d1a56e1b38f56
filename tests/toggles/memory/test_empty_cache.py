from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from gpubench.report.model import Memory
from gpubench.toggles.memory import empty_cache
from gpubench.toggles.memory.empty_cache import EMPTY_CACHE
from gpubench.toggles.toggle import in_force
from gpubench.worker.prepared_model import PreparedModel

MIB = 2**20
CACHED = {"reserved_bytes.all.current": 300 * MIB, "allocated_bytes.all.current": 100 * MIB}


class Allocator:
    """torch's counters, as a GPU with 200 MiB in its cache has them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, self.stats = 0, CACHED | {"reserved_bytes.all.freed": 7 * MIB, "num_device_free": 1}
        monkeypatch.setattr(torch.cuda, "empty_cache", self.empty)
        monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: dict(self.stats))

    def empty(self) -> None:
        self.calls += 1
        self.stats["reserved_bytes.all.freed"] += 180 * MIB
        self.stats["num_device_free"] += 9


@pytest.mark.parametrize(("value", "calls"), [("off", 0), ("on", 1)])
def test_the_cache_is_emptied_once_when_the_step_is_warm(kit, monkeypatch, value, calls):
    allocator = Allocator(monkeypatch)
    context = kit.prepare({"empty_cache": value})
    kit.step(context)
    assert allocator.calls == 0
    warm = SimpleNamespace(context=context, stepper=SimpleNamespace(steps=1), unavailable={}, memory=Memory())
    PreparedModel.end_of_warmup(cast("Any", warm))
    kit.step(context)
    assert allocator.calls == calls
    proof = EMPTY_CACHE.evidence(context, value)
    assert proof.took_effect is True
    assert proof.detail == (
        "emptied once: 180 MiB of 200 MiB that were free in it given back, in 9 calls of the driver"
        if calls
        else "the cache was not emptied before the timed steps"
    )


def test_an_apply_that_does_nothing_is_caught(kit):
    idle = dataclasses.replace(EMPTY_CACHE, apply=in_force)
    context = kit.prepare({"empty_cache": "on"}, replace={"empty_cache": idle})
    assert EMPTY_CACHE.evidence(context, "on").took_effect is False


def test_one_that_was_never_called_is_caught(kit, monkeypatch):
    Allocator(monkeypatch)
    context = kit.prepare({"empty_cache": "on"})
    assert EMPTY_CACHE.evidence(context, "on").took_effect is False


def test_it_is_for_a_gpu(kit):
    assert EMPTY_CACHE.applies(kit.scope()) == "torch keeps no memory of its own on A CPU"
    assert EMPTY_CACHE.applies(kit.scope(kit.AMPERE)) is None


def test_the_printed_line_is_the_one_that_ran():
    assert EMPTY_CACHE.usage("on", None).startswith(empty_cache._USAGE)
