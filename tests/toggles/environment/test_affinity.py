"""Binding acts before a process starts, so its evidence is read in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpubench.toggles.environment import affinity
from gpubench.toggles.environment.affinity import AFFINITY, BOUND

PROVE = """
import json, sys
import torch
torch.set_num_threads(int(sys.argv[2]))
from gpubench.toggles.environment.affinity import AFFINITY
proof = AFFINITY.evidence(None, sys.argv[1])
print(json.dumps([proof.took_effect, proof.detail]))
"""
HOMES = {next(iter(affinity._physical(core))) for core in os.sched_getaffinity(0)}
two_cores = pytest.mark.skipif(len(HOMES) < 2, reason="needs two physical cores, this process may use one")


def proof(value: str, variables: dict[str, str], threads: int = 2) -> tuple[bool | None, str]:
    """What AFFINITY says in a process with these variables."""
    own = {name: text for name, text in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROVE, value, str(threads)],
        env={**own, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    took_effect, detail = json.loads(done.stdout)
    return took_effect, detail


@two_cores
def test_each_thread_has_a_core_of_its_own():
    took_effect, detail = proof("one-per-core", AFFINITY.environment("one-per-core"))
    assert took_effect is True, detail
    assert detail.endswith("2 of them bound to one physical core, on 2 different cores")


@two_cores
def test_an_environment_that_was_not_set_is_caught():
    took_effect, detail = proof("one-per-core", {})
    assert took_effect is False, detail


def faked(monkeypatch, tmp_path: Path, allowed: list[str], siblings: dict[int, str] | None = None) -> None:
    """A process whose threads may run on these cores, and all of them work."""
    for task, cores in enumerate(allowed):
        (tmp_path / "task" / str(task)).mkdir(parents=True)
        (tmp_path / "task" / str(task) / "status").write_text(f"Name:\tx\nCpus_allowed_list:\t{cores}\n")
    for core, together in (siblings or {}).items():
        (tmp_path / f"cpu{core}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{core}" / "topology" / "thread_siblings_list").write_text(f"{together}\n")
    monkeypatch.setattr(affinity, "TASKS", tmp_path / "task")
    monkeypatch.setattr(affinity, "CORES", tmp_path)
    monkeypatch.setattr(affinity, "_team", lambda count: [str(task) for task in range(len(allowed))])


PAIRS = {0: "0,4", 1: "1,5", 4: "0,4", 5: "1,5"}  # two cores with two threads each


@pytest.mark.parametrize(
    ("allowed", "threads", "took_effect"),
    [
        (["0,4", "1,5"], 2, True),
        (["4", "1"], 2, True),
        (["0", "4"], 2, False),  # two threads of one core
        (["0-1,4-5", "0-1,4-5"], 2, False),  # not bound
        (["0", "0"], 2, False),  # both on one
        (["0,4", "1,4-5"], 2, False),
        (["0,4"], 1, True),
        (["0,4"], 2, None),  # one has not got to run
    ],
)
def test_the_threads_allowed_cores_decide(kit, monkeypatch, tmp_path, allowed, threads, took_effect):
    faked(monkeypatch, tmp_path, allowed, PAIRS)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    found = AFFINITY.evidence(kit.prepare({}), "one-per-core")
    assert found.took_effect is took_effect, found


def test_the_baseline_is_whatever_the_environment_has(kit, monkeypatch):
    for bound in (None, "close"):
        monkeypatch.setattr(affinity, "variable_at_start", lambda name, bound=bound: bound)
        found = AFFINITY.evidence(kit.prepare({}), "as-is")
        assert found.took_effect is True
        assert found.detail.endswith(f"OMP_PROC_BIND is {'unset' if bound is None else repr(bound)}")
    assert AFFINITY.environment("as-is") == {}


def test_a_system_that_does_not_tell_is_no_proof(kit, monkeypatch, tmp_path):
    faked(monkeypatch, tmp_path, [])
    assert AFFINITY.evidence(kit.prepare({}), "one-per-core").took_effect is None
    monkeypatch.setattr(affinity, "_team", lambda count: ["gone"])
    assert AFFINITY.evidence(kit.prepare({}), "one-per-core").took_effect is None


def test_the_team_is_what_works():
    assert str(os.getpid()) in affinity._team(1)
    assert affinity._allowed(str(os.getpid())) == os.sched_getaffinity(0)


def test_more_threads_than_cores_cannot_be_bound(kit):
    scope = kit.scope()  # 4 physical cores
    assert AFFINITY.unmet(scope, "one-per-core", {"threads": 4}) is None
    assert AFFINITY.unmet(scope, "as-is", {"threads": 8}) is None
    assert AFFINITY.unmet(scope, "one-per-core", {"threads": 8}) == (
        "needs a core for each thread: threads=8, and there are 4 physical cores"
    )


def test_one_core_is_nothing_to_choose_from(kit):
    device = kit.CPU.__class__(kind="cpu", name="A CPU", cores=2, physical_cores=1)
    reason = "needs at least two physical cores, this process may use one"
    assert AFFINITY.unmet(kit.scope(device), "one-per-core") == reason
    assert AFFINITY.unmet(kit.scope(device), "as-is") is None
    assert AFFINITY.applies(kit.scope(kit.AMPERE)) == "NVIDIA A100 does the work, not CPU threads"


def test_what_is_printed_is_what_is_set():
    lines = AFFINITY.usage("one-per-core", None).splitlines()
    assert lines == [f"export {name}={text}" for name, text in BOUND.items()]
