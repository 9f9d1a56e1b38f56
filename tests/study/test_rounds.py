"""Rounds of real processes: in turns, the sides of `ab` in one process, with little memory, and what they leave."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gpubench.executor.executor import Job
from gpubench.executor.local import LocalExecutor
from gpubench.executor.outcome import Outcome
from gpubench.executor.worker_pool import WorkerPool
from gpubench.executor.worker_process import Worker
from gpubench.report.model import Protocol
from gpubench.worker.messages import MakeReference, WorkloadChoice
from tests import reports
from tests.study.conftest import gpubench_here

SHORT = Protocol(warmup_min_iterations=3, warmup_min_s=0.0, warmup_max_s=0.2, min_sampling_s=0.1, max_sampling_s=0.3)


@pytest.fixture
def pool(models: Path, request: pytest.FixtureRequest) -> Iterator[WorkerPool]:
    name = getattr(request, "param", "good")
    choice = WorkloadChoice(reference=f"{models}:{name}", size=None, parameters={}, mode="inference")
    with WorkerPool(choice, "cpu", SHORT) as found:
        found.describe(None)
        yield found


def executor(pool: WorkerPool, **protocol: object) -> LocalExecutor:
    pool.protocol = msgspec.structs.replace(pool.protocol, **protocol)
    return LocalExecutor(pool, {"precision": "fp32", "threads": 1}, lambda _: None, {"a": pool, "b": pool})


PLAIN: dict[str, str | int] = {"precision": "fp32", "threads": 1, "channels_last": "off"}
JOBS = [Job("plain", PLAIN), Job("again", PLAIN), Job("bf16", {**PLAIN, "precision": "bf16-autocast"})]
SIDES = [Job("a plain", PLAIN, "a"), Job("b plain", PLAIN, "b")]


def assert_in_turns(results: dict[str, Outcome]) -> None:
    for result in results.values():
        assert result.status == "ok", result.reason
        assert result.sampled is not None
        assert sum(result.turns) == len(result.sampled.samples_s)
        assert len(result.turns) == 4
        assert result.collected is not None
        assert all(one.took_effect for one in result.collected.evidence)
    # In turns: each began before the others had ended.
    spans = [(result.sampled.started, result.sampled.ended) for result in results.values() if result.sampled]
    assert max(start for start, _ in spans) < min(end for _, end in spans)


def test_configurations_of_a_study_have_processes_of_their_own_and_are_sampled_in_turns(pool: WorkerPool) -> None:
    results = executor(pool).run_round(JOBS)
    assert list(results) == ["plain", "again", "bf16"]
    assert all(not result.shared_with for result in results.values())
    assert_in_turns(results)


def test_two_sides_of_one_configuration_share_a_process_and_are_sampled_in_turns(pool: WorkerPool) -> None:
    results = executor(pool).run_round(SIDES)
    assert {job_id: result.shared_with for job_id, result in results.items()} == {
        "a plain": ["b plain"], "b plain": ["a plain"],
    }  # fmt: skip
    assert_in_turns(results)


@pytest.mark.parametrize(
    ("protocol", "jobs", "groups"),
    [
        ({}, SIDES, [2]),
        ({"pair": "round"}, SIDES, [1, 1]),
        ({"max_memory_bytes": 8 * 2**30}, SIDES, [1, 1]),  # the limit is a process's
        ({}, [SIDES[0], replace(SIDES[1], configuration={**PLAIN, "threads": 2})], [1, 1]),
        ({}, [replace(job, configuration={**PLAIN, "compile": "default"}) for job in SIDES], [1, 1]),
        ({}, [Job("baseline", PLAIN), Job("control", PLAIN)], [1, 1]),
        ({}, [SIDES[0], replace(SIDES[1], target="other python")], [1, 1]),
    ],
)
def test_only_sides_of_one_configuration_share(protocol: dict[str, Any], jobs: list[Job], groups: list[int]) -> None:
    choice = WorkloadChoice(reference="resnet50", size=None, parameters={}, mode="inference")
    pool, other = WorkerPool(choice, "cpu", Protocol(**protocol)), WorkerPool(choice, "cpu", Protocol(), "python9")
    sides = LocalExecutor(pool, {}, lambda _: None, {"a": pool, "b": pool, "other python": other})
    assert [len(group) for group in sides._by_process(jobs)] == groups


def test_sides_whose_code_sets_the_process_differently_do_not_share_one() -> None:
    """Both live in it: a default dtype, say, would be the other side's as well."""
    choice = WorkloadChoice(reference="resnet50", size=None, parameters={}, mode="inference")
    one, other = WorkerPool(choice, "cpu", Protocol()), WorkerPool(choice, "cpu", Protocol())
    sides = LocalExecutor(one, {}, lambda _: None, {"a": one, "b": other})
    plain = reports.report().workload
    own = msgspec.structs.replace(plain, settings={"torch.get_default_dtype()": "float64"})
    for first, second, groups in ((plain, plain, [2]), (plain, own, [1, 1]), (own, own, [2])):
        one.facts, other.facts = first, second
        assert [len(group) for group in sides._by_process(SIDES)] == groups


def test_nothing_profiles_before_all_are_timed(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    # What the profiler keeps makes later steps up to 38 % faster (benchmarks/plain_script.py), and counts as memory.
    asked: list[str] = []
    original = Worker.ask

    def note(self: Worker, request: Any, *rest: Any) -> Any:
        if not isinstance(request, MakeReference):
            asked.append(type(request).__name__ + ("" if getattr(request, "whole", True) else " in part"))
        return original(self, request, *rest)

    monkeypatch.setattr(Worker, "ask", note)
    measured = executor(pool)
    measured.run_alone(JOBS[0])
    assert asked == ["Prepare", "TakeSamples", "CheckLast", "MeasureMemory", "CollectEvidence", "SeeRange"]
    asked.clear()
    measured.run_round(JOBS[1:])
    assert asked[:-3] == ["Prepare"] * 2 + ["TakeSamples"] * 8 + ["CheckLast"]
    # What has run before need not show again that its steps keep their pace and leave nothing out.
    assert asked[-3:] == ["CollectEvidence in part", "CheckLast", "CollectEvidence"]


def test_where_memory_is_short_they_run_one_after_the_other(pool: WorkerPool) -> None:
    results = executor(pool).run_round(JOBS[:2], needed_bytes=1 << 60)
    spans = [(one.sampled.started, one.sampled.ended) for one in results.values() if one.sampled]
    assert len(spans) == 2
    assert spans[0][1] < spans[1][0]
    assert all(not result.turns for result in results.values())


@pytest.mark.parametrize("pool", ["one_at_a_time"], indirect=True)
def test_what_does_not_fit_beside_others_is_measured_alone(pool: WorkerPool) -> None:
    results = executor(pool).run_round(SIDES)
    assert {job_id: result.status for job_id, result in results.items()} == {"a plain": "ok", "b plain": "ok"}
    apart = [
        job_id for job_id, result in results.items() if any(flag.kind == "measured_apart" for flag in result.flags)
    ]
    assert len(apart) == 1  # nothing is measured once more in silence


@pytest.mark.parametrize("pool", ["one_model"], indirect=True)
def test_models_that_share_modules_do_not_share_a_process(pool: WorkerPool) -> None:
    """Converted weights, or a module compiled in place, would be the other side's as well."""
    measured = executor(pool)
    for _ in range(2):
        results = measured.run_round([replace(job, configuration={"precision": "bf16-weights"}) for job in SIDES])
        assert {job_id: result.status for job_id, result in results.items()} == {"a plain": "ok", "b plain": "ok"}
        assert all(not result.shared_with for result in results.values())
    assert [note for note in measured.notes if "share modules" in note] == measured.notes


@pytest.mark.measures
def test_race_and_duel_are_in_the_report(models: Path, tmp_path: Path) -> None:
    done = gpubench_here(
        "compare-opts", f"{models}:slower_in_fp32", "--set", "precision=bf16-autocast", "--set", "allocator=tuned",
        "--fix", "threads=1", "--strategy", "each", "--final-rounds", "3", "--allow", "contaminated", "--allow",
        "unsteady", "--format", "json", "--output", "report.json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    rows = {row["id"]: row for row in report["measurements"]}
    fast = next(row for row in rows.values() if row["configuration"]["precision"] == "bf16-autocast")
    baseline = rows[report["plan"]["baseline"]]
    found = report["recommendation"]
    assert found["id"] == fast["id"]
    assert found["rounds"] >= 3
    assert found["speedup_low"] <= found["speedup"] <= found["speedup_high"]
    assert 1.7 <= found["speedup"] <= 2.3  # 40 against 20 ms of sleep
    assert found["detectable"] > 0
    for row in (fast, baseline):
        final = [one for one in row["rounds"] if one["phase"] == "final"]
        assert len(final) == found["rounds"]
        assert row["latency_s"]["processes"] == len(final)
        assert row["latency_s"]["ci_low"] < row["latency_s"]["median"] < row["latency_s"]["ci_high"]
    positions = [one["position"] for row in rows.values() for one in row["rounds"]]
    assert sorted(positions) == list(range(len(positions)))  # the order of measuring, whole
    first, second = ([one["position"] for one in row["rounds"] if one["phase"] == "final"] for row in (fast, baseline))
    assert [a < b for a, b in zip(first, second, strict=True)][:2] in ([True, False], [False, True])  # reversed
    again = rows["control"]  # the baseline once more, in every round of the final and nowhere else
    assert again["configuration"] == baseline["configuration"]
    assert [one["phase"] for one in again["rounds"]] == ["final"] * found["rounds"]
    assert again["memory"] is None
    assert "memory" in again["unavailable"]
    assert found["control_low"] <= found["control"] <= found["control_high"]
    assert 0.9 <= found["control"] <= 1.1  # 40 ms of sleep each
    assert any("A/A control" in reason for reason in found["reasons"])


@pytest.mark.slow
def test_every_configuration_in_several_rounds(models: Path, tmp_path: Path) -> None:
    done = gpubench_here(
        "batch-sweep", f"{models}:good", "--sizes", "1", "2", "--rounds", "3", "--fix", "threads=1", "--format",
        "json", "--output", "report.json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["measurements"]
    assert [[one["index"] for one in row["rounds"]] for row in rows] == [[1, 2, 3], [1, 2, 3]]
    order = sorted((one["position"], row["id"], one["index"]) for row in rows for one in row["rounds"])
    first, second = ([row_id for _, row_id, index in order if index == which] for which in (1, 2))
    assert second == first[::-1]
    assert all(row["latency_s"]["processes"] == 3 for row in rows)
