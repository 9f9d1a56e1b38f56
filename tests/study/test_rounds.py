"""Rounds of real processes: several in turns, in one process or in several, with little memory, and what they leave."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gpubench.executor.local import LocalExecutor
from gpubench.executor.worker_pool import WorkerPool
from gpubench.report.model import Protocol
from gpubench.worker.messages import WorkloadChoice
from tests.study.conftest import gpubench_here

SHORT = Protocol(warmup_min_iterations=3, warmup_min_s=0.0, warmup_max_s=0.2, min_sampling_s=0.1, max_sampling_s=0.3)


@pytest.fixture
def pool(models: Path, request: pytest.FixtureRequest) -> Iterator[WorkerPool]:
    name = getattr(request, "param", "good")
    choice = WorkloadChoice(reference=f"{models}:{name}", size=None, parameters={}, mode="inference")
    with WorkerPool(choice, "cpu", SHORT) as found:
        found.describe(None)
        yield found


def bench(pool: WorkerPool, **protocol: object) -> LocalExecutor:
    pool.protocol = msgspec.structs.replace(pool.protocol, **protocol)
    return LocalExecutor(pool, {"precision": "fp32", "threads": 1}, lambda _: None)


PLAIN: dict[str, str | int] = {"precision": "fp32", "threads": 1, "channels_last": "off"}
ASKED = [
    ("plain", PLAIN),
    ("bf16", {**PLAIN, "precision": "bf16-autocast"}),
    ("two", {**PLAIN, "threads": 2}),
]


def test_those_that_can_share_a_process_do_and_all_are_sampled_in_turns(pool: WorkerPool) -> None:
    results = bench(pool).together(ASKED)
    assert {row_id: result.status for row_id, result in results.items()} == {"plain": "ok", "bf16": "ok", "two": "ok"}
    assert {row_id: list(result.shared_with) for row_id, result in results.items()} == {
        "plain": ["bf16"], "bf16": ["plain"], "two": [],
    }  # fmt: skip
    for result in results.values():
        assert result.sampled is not None
        assert sum(result.turns) == len(result.sampled.samples_s)
        assert len(result.turns) == 4
        assert result.collected is not None
        assert all(one.took_effect for one in result.collected.evidence)
    # In turns: each began before the others had ended.
    spans = [(result.sampled.started, result.sampled.ended) for result in results.values() if result.sampled]
    assert max(start for start, _ in spans) < min(end for _, end in spans)


def test_a_process_each_where_that_is_asked_for(pool: WorkerPool) -> None:
    results = bench(pool, pair="round").together(ASKED)
    assert all(not result.shared_with for result in results.values())
    assert all(len(result.turns) == 4 for result in results.values())


def test_nothing_profiles_before_all_are_timed(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    # What the profiler keeps makes later steps up to 38 % faster (benchmarks/plain_script.py), and counts as memory.
    asked: list[str] = []
    original = LocalExecutor._ask

    def note(self: LocalExecutor, slot: Any, request: Any, reply: Any) -> Any:
        asked.append(type(request).__name__)
        return original(self, slot, request, reply)

    monkeypatch.setattr(LocalExecutor, "_ask", note)
    measured = bench(pool)
    measured.alone("plain", PLAIN)
    assert asked == ["Prepare", "Sample", "CheckLast", "MeasureMemory", "CollectEvidence"]
    asked.clear()
    measured.together(ASKED[:2])
    assert asked == ["Prepare"] * 2 + ["Sample"] * 8 + ["CheckLast", "CollectEvidence"] * 2


def test_a_limit_on_memory_is_not_shared(pool: WorkerPool) -> None:
    results = bench(pool, max_memory_bytes=8 * 2**30).together(ASKED[:2])
    assert all(not result.shared_with for result in results.values())


def test_where_memory_is_short_they_run_one_after_the_other(pool: WorkerPool) -> None:
    results = bench(pool).together(ASKED[:2], needs=1 << 60)
    spans = [(one.sampled.started, one.sampled.ended) for one in results.values() if one.sampled]
    assert len(spans) == 2
    assert spans[0][1] < spans[1][0]
    assert all(not result.turns for result in results.values())


@pytest.mark.parametrize("pool", ["one_at_a_time"], indirect=True)
def test_what_does_not_fit_beside_others_is_measured_alone(pool: WorkerPool) -> None:
    results = bench(pool).together(ASKED[:2])
    assert {row_id: result.status for row_id, result in results.items()} == {"plain": "ok", "bf16": "ok"}
    apart = [
        row_id for row_id, result in results.items() if any(flag.kind == "measured_apart" for flag in result.flags)
    ]
    assert len(apart) == 1  # nothing is measured once more in silence


@pytest.mark.parametrize("pool", ["one_model"], indirect=True)
def test_models_that_share_modules_do_not_share_a_process(pool: WorkerPool) -> None:
    """Converted weights, or a module compiled in place, would be the baseline's as well."""
    measured = bench(pool)
    for _ in range(2):
        results = measured.together([("plain", PLAIN), ("bf16", {**PLAIN, "precision": "bf16-weights"})])
        assert {row_id: result.status for row_id, result in results.items()} == {"plain": "ok", "bf16": "ok"}
        assert all(not result.shared_with for result in results.values())
    assert [note for note in pool.notes if "share modules" in note] == pool.notes


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
