from __future__ import annotations

import dataclasses
import re

import pytest
import torch

from gpubench.toggles.environment import threads as toggle
from gpubench.toggles.environment.threads import THREADS

DO_NOTHING = dataclasses.replace(THREADS, apply=lambda context, value: None)


@pytest.mark.parametrize("value", [1, 2])
def test_the_pool_has_the_size_and_shares_the_work(kit, value):
    context = kit.run({"threads": value})
    proof = THREADS.evidence(context, value)
    assert proof.took_effect is True
    worked = re.search(r"is (\d+); (\d+) OS threads? ran", proof.detail)
    assert worked, proof
    assert int(worked[1]) == value
    assert int(worked[2]) >= 1


def test_an_apply_that_does_nothing_is_caught(kit):
    torch.set_num_threads(2)
    context = kit.run({"threads": 1}, replace={"threads": DO_NOTHING})
    proof = THREADS.evidence(context, 1)
    assert proof.took_effect is False
    assert proof.detail.startswith("torch.get_num_threads() is 2;")


@pytest.mark.parametrize(
    ("value", "threads", "cores", "took_effect", "words"),
    [
        (2, 2, 1.9, True, "2 OS threads ran"),
        (2, 1, 1.0, False, "1 OS thread ran"),  # the pool says two, and one does all the work
        (2, None, 1.9, True, "an unknown number of OS threads ran during a trial operation, which kept 1.9 cores busy"),
        (2, None, 1.0, None, "an unknown number of OS threads ran during a trial operation, which kept 1.0 cores busy"),
        (1, 1, 1.0, True, "1 OS thread ran"),
        (1, 3, 1.0, True, "3 OS threads ran"),
        (1, None, 1.0, True, "an unknown number of OS threads ran"),
    ],
)
def test_threads_that_do_not_share_the_work_are_caught(kit, monkeypatch, value, threads, cores, took_effect, words):
    monkeypatch.setattr(toggle, "_trial", lambda: (threads or 0, cores))
    proof = THREADS.evidence(kit.prepare({"threads": value}), value)
    assert proof.took_effect is took_effect
    assert words in proof.detail


def test_a_kernel_that_keeps_no_account_of_threads_is_told(kit, monkeypatch):
    for times in ({}, {"1": 0}):
        monkeypatch.setattr(toggle, "_run_times_ns", lambda times=times: times)
        assert "an unknown number of OS threads ran" in THREADS.evidence(kit.prepare({"threads": 1}), 1).detail


@pytest.mark.parametrize(
    ("cores", "physical", "offered"),
    [
        (8, 4, (4, 1, 2, 8)),
        (8, 8, (8, 1, 2, 4)),
        (2, None, (2, 1)),
        (12, 6, (6, 1, 2, 4, 12)),
        (1, 1, (1,)),
        (2, 4, (2, 1)),
    ],
)
def test_physical_cores_are_the_baseline(kit, cores, physical, offered):
    device = kit.CPU.__class__(kind="cpu", name="A CPU", cores=cores, physical_cores=physical)
    assert THREADS.offered(kit.scope(device)) == offered


def test_a_gpu_does_not_use_cpu_threads(kit):
    assert THREADS.applies(kit.scope()) is None
    assert THREADS.applies(kit.scope(kit.AMPERE)) == "NVIDIA A100 does the work, not CPU threads"
