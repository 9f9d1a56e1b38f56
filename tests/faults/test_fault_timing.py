"""Planted faults of the clock and of the step: slow starts, drift, work that goes on after a call has returned."""

from __future__ import annotations

import dataclasses
import math
import random
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from scipy import stats

from gpubench.analysis.eligibility import exclusion, gate
from gpubench.analysis.speedup import Speedups
from gpubench.executor.executor import Job
from gpubench.executor.local import LocalExecutor
from gpubench.executor.outcome import Outcome
from gpubench.executor.process_flags import flags_of
from gpubench.executor.worker_pool import WorkerPool
from gpubench.flags import Flag
from gpubench.measure.steady import warm_up
from gpubench.measure.stopping import StoppingRule
from gpubench.measure.timing import CudaTimer, Samples, Timer, WallTimer, calibrate, sample, sample_blocks
from gpubench.report.model import Measurement, Protocol
from gpubench.stats.latency import latency
from gpubench.study import rows
from gpubench.study.schedule import Schedule
from tests import reports
from tests.faults.scripted import (
    Planted,
    Script,
    choice,
    orders,
    pool,
    prepared,
    process,
    row_of,
    sampled,
    study,
    threads_matrix,
)

__all__ = ["orders", "pool"]  # fixtures

DEFAULT = Protocol()
QUICK = Protocol(block_s=0.01, min_samples=10, min_sampling_s=0.2, max_sampling_s=0.6,
                 warmup_min_iterations=8, warmup_min_s=0.1, warmup_max_s=0.3)  # fmt: skip


def take(step: Script, timer: Timer, iterations: int, samples: int) -> Samples:
    rule = StoppingRule(min_samples=samples, min_s=0.0, target_spread=9.0)
    return sample(step.step, timer, iterations=iterations, rule=rule)


# ----- exact figures


def test_blocks_and_their_statistics_are_exact() -> None:
    """21 blocks of 17 iterations, whose means are 1, 2, ... 21 ms in random order."""
    iterations = calibrate(0.003, DEFAULT.block_s)
    assert iterations == 17
    means = random.Random(0).sample(range(1, 22), 21)
    # Within a block the iterations differ as much as they can: only their sum may count.
    script = Script(*(0.001 * mean * share for mean in means for share in [*[0.5] * 16, 9.0]))
    taken = take(script, WallTimer(script.now), iterations, 21)
    assert taken.iterations_per_sample == 17
    assert script.calls == 21 * 17
    assert taken.seconds == pytest.approx([0.001 * mean for mean in means])
    figures = latency(taken.seconds)
    assert figures.median == pytest.approx(0.011)
    assert (figures.p5, figures.p95) == pytest.approx((0.002, 0.020))  # the second and the last but one of 21
    assert (figures.processes, figures.ci_low, figures.ci_high) == (1, None, None)


def test_the_wall_clock_set_back_changes_no_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = time.time, 0
    # Set before the timer is made: one that used this clock would take it from here.
    monkeypatch.setattr(time, "time", lambda: real() - 3600.0 * (calls // 15))

    def step() -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.004)

    taken = sample_blocks(step, WallTimer(), iterations=2, count=20)
    assert time.time() < real() - 7200
    assert all(0.004 <= seconds < 1 for seconds in taken.seconds)
    # The fault is there to be seen: by this clock, blocks take minus an hour.
    assert min(sample_blocks(step, WallTimer(time.time), iterations=2, count=20).seconds) < -100


def test_the_wall_clock_of_a_worker_set_back_changes_no_figure(pool: WorkerPool) -> None:
    """The same in a real process: nothing of it may be negative, an hour long, or without an end."""
    pool.choice = choice("sets_the_clock_back")
    pool.protocol = msgspec.structs.replace(QUICK, timeout_s=30.0)
    result = LocalExecutor(pool, {}, lambda _: None).run_alone(Job("row", {}))
    assert result.status == "ok", result.reason
    assert result.sampled is not None
    assert all(0.004 <= seconds < 1 for seconds in result.sampled.samples_s)
    assert 0.2 <= result.sampled.ended - result.sampled.started < 60
    assert all(0 <= seconds < 60 for seconds in result.phases_s.values())


# ----- work that goes on after a call has returned


class Device:
    """Starts 10 ms of work with each call, which takes the host 0.1 ms, and does it meanwhile. Behind torch.cuda."""

    def __init__(self) -> None:
        self.time, self.busy_until = 0.0, 0.0

    def now(self) -> float:
        return self.time

    def step(self) -> None:
        self.time += 0.0001
        self.busy_until = max(self.busy_until, self.time) + 0.010

    def synchronize(self, device: torch.device) -> None:
        self.time = max(self.time, self.busy_until)

    def event(self, enable_timing: bool) -> Event:
        assert enable_timing
        return Event(self)


class Event:
    """Is reached once the work before it is done."""

    def __init__(self, device: Device) -> None:
        self.device, self.at = device, math.nan

    def record(self) -> None:
        self.at = max(self.device.time, self.device.busy_until)

    def elapsed_time(self, later: Event) -> float:
        return 1e3 * (later.at - self.at)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device()
    monkeypatch.setattr(torch.cuda, "Event", made.event)
    monkeypatch.setattr(torch.cuda, "synchronize", made.synchronize)
    return made


def cuda_timer(device: Device) -> CudaTimer:
    timer = CudaTimer(torch.device("cuda"))
    timer.now = device.now
    return timer


def test_asynchronous_work_is_counted_whole(device: Device) -> None:
    timer = cuda_timer(device)
    assert timer.block(device.step, 10).wall_s == pytest.approx(0.1001)
    taken = sample_blocks(device.step, timer, iterations=10, count=5)
    assert taken.seconds == pytest.approx([0.01001] * 5)
    assert taken.device_seconds == pytest.approx([0.01001] * 5)
    # The fault is there to be seen: the same work is nearly free by a clock that does not wait.
    assert WallTimer(device.now).block(device.step, 10).wall_s == pytest.approx(0.001)


def test_work_of_before_is_not_counted(device: Device) -> None:
    for _ in range(100):
        device.step()  # a second of work is under way when the block begins
    block = cuda_timer(device).block(device.step, 1)
    assert (block.wall_s, block.device_s) == pytest.approx((0.0101, 0.0101))


# ----- slow starts and drift


def warm(script: Script) -> bool | None:
    """The warm-up of the default protocol."""
    return warm_up(
        script.step,
        WallTimer(script.now),
        min_iterations=DEFAULT.warmup_min_iterations,
        min_s=DEFAULT.warmup_min_s,
        max_s=DEFAULT.warmup_max_s,
        block_s=DEFAULT.block_s,
    ).steady


@pytest.mark.parametrize("step_s", [0.0001, 0.001, 0.005, 0.018])
def test_a_start_that_is_4_times_slower_for_20_iterations_reaches_no_sample(step_s: float) -> None:
    script = Script(*[4 * step_s] * 20, step_s)
    assert warm(script) is True
    assert script.calls >= 25
    assert take(script, WallTimer(script.now), 1, 10).seconds == pytest.approx([step_s] * 10)


def test_endless_drift_is_unsteady_in_the_warm_up() -> None:
    script = Script(*(0.05 * 1.08**index for index in range(300)))
    assert warm(script) is False
    flags = flags_of(Outcome("ok", "", "", prepared(steady=False), sampled([0.1] * 20)))
    assert list(map(str, flags)) == ["unsteady: the warm-up's 25 iterations did not settle"]
    row = reports.row("fast", 0.05, {"compile": "default"}, flags=list(map(str, flags)))
    found = reports.report(reports.baseline(), row)
    assert "had not settled" in (exclusion(found, row, "fps", None) or "")


def test_a_worker_whose_steps_never_settle_says_so(pool: WorkerPool) -> None:
    """The same in a real process: each step is 8 % longer than the one before."""
    pool.choice = choice("slows_down")
    pool.protocol = msgspec.structs.replace(QUICK, warmup_max_s=1.0, timeout_s=60.0)
    result = LocalExecutor(pool, {}, lambda _: None).run_alone(Job("row", {}))
    assert result.prepared is not None, result.reason
    assert result.prepared.steady is False
    assert "unsteady" in [flag.kind for flag in result.flags]


def drifting(samples_s: list[float]) -> tuple[Flag, ...]:
    return flags_of(Outcome("ok", "", "", prepared(), sampled(samples_s)))


def test_a_drift_too_slow_for_the_warm_up_is_unsteady_by_the_samples() -> None:
    script = Script(*(0.02 * 1.002**index for index in range(2000)))
    assert warm(script) is True  # 1.2 % over the window of the warm-up: within its agreement
    taken = take(script, WallTimer(script.now), 3, 30)
    assert [flag.kind for flag in drifting(list(taken.seconds))] == ["unsteady"]
    assert str(drifting(list(taken.seconds))[0]) == "unsteady: its step time changed by +12.7% during sampling"


def test_chance_is_not_taken_for_drift() -> None:
    chance = np.random.default_rng(0)
    hits = sum(bool(drifting(list(chance.normal(0.02, 0.002, 30)))) for _ in range(200))
    assert hits <= stats.binom.ppf(0.999, 200, 0.01)


# ----- what the samples cannot show by themselves


@pytest.mark.parametrize("later", ["fast", "slow"])
def test_a_step_that_takes_another_time_later_gates(later: str, pool: WorkerPool, orders: Path) -> None:
    """Samples that agree with each other, of a start that lasts longer than the warm-up."""
    mark = orders / "slow"
    pool.choice, pool.protocol = choice("changes"), msgspec.structs.replace(QUICK, timeout_s=60.0)

    def on_phase(phase: str) -> None:
        if phase in ("start", "memory"):
            mark.touch() if (phase == "memory") == (later == "slow") else mark.unlink(missing_ok=True)

    try:
        result = LocalExecutor(pool, {}, on_phase).run_alone(Job("row", {}))
    finally:
        mark.unlink(missing_ok=True)
    assert result.status == "ok", result.reason
    assert "a step just before the proof" in str([flag for flag in result.flags if flag.kind == "speed_changed"])
    row = explored("row", [result])
    assert "its steps took another time later on" in (gate(row) or "")


@pytest.mark.parametrize("stops", [1, 2])
def test_a_process_that_was_stopped_is_sampled_again(stops: int, pool: WorkerPool, orders: Path) -> None:
    asked: list[str] = []

    def on_phase(phase: str) -> None:
        if phase == "sampling":
            asked.append(phase)
            if len(asked) <= stops:
                (orders / "stop").touch()

    pool.choice = choice("stops")
    pool.protocol = msgspec.structs.replace(QUICK, timeout_s=60.0, throttle_retries=1)
    result = LocalExecutor(pool, {}, on_phase).run_alone(Job("row", {}))
    assert [flag.kind for flag in result.flags if flag.kind == "interrupted"] == ["interrupted"]
    if stops == 1:
        assert result.status == "ok", result.reason
        assert result.sampled is not None
        assert max(result.sampled.samples_s) < 0.3
        assert any("while it was sampled; sampled again, once" in flag.detail for flag in result.flags)
    else:
        assert (result.status, result.reason) == (
            "failed", "no valid samples: it was stopped in each of 2 samplings.",
        )  # fmt: skip


# ----- order


def test_a_schedule_is_the_same_for_a_seed_and_random_otherwise() -> None:
    ids = [f"row{index}" for index in range(8)]

    def orders_of(seed: int) -> list[list[str]]:
        schedule = Schedule(seed)
        return [schedule.round(index, ids) for index in range(1, 9)]

    assert orders_of(3) == orders_of(3)
    assert orders_of(3) != orders_of(4)
    for first, second in zip(orders_of(3)[::2], orders_of(3)[1::2], strict=True):
        assert sorted(first) == ids
        assert second == first[::-1]
    assert len({tuple(order) for order in orders_of(3)}) == 8


def test_every_configuration_may_come_anywhere_in_a_round() -> None:
    ids, counts = list("abcde"), np.zeros((5, 5))
    for seed in range(400):
        for place, row_id in enumerate(Schedule(seed).round(1, ids)):
            counts[ids.index(row_id), place] += 1
    assert stats.chisquare(counts.ravel(), ddof=8).pvalue > 0.001  # 16 degrees of freedom: rows and columns add up


@pytest.mark.parametrize("seed", range(5))
def test_linear_drift_falls_on_all_alike(seed: int, tmp_path: Path) -> None:
    """The machine becomes 2 % slower with every process; rows are truly equally fast."""
    planted = Planted(lambda _, before: 0.1 * 1.02**before)
    protocol = Protocol(seed=seed, rounds=4)
    report = study(tmp_path / "report.json", planted, threads_matrix(5), protocol).compare()
    assert len(planted.ran) == 4 * 6
    for row in report.measurements[1:]:
        found = Speedups(report).of(row, row_of(report, "baseline"))
        assert found is not None
        assert found.ratio == pytest.approx(1.0, abs=1e-9)
        assert found.low < 1 < found.high


def test_linear_drift_falls_on_both_of_a_duel_alike(tmp_path: Path) -> None:
    """The same in the final, where the choice is truly 1.5 times as fast."""
    planted = Planted(lambda row_id, before: (0.15 if row_id == "baseline" else 0.1) * 1.02**before)
    protocol = Protocol(final_rounds=6)
    report = study(tmp_path / "report.json", planted, threads_matrix(1), protocol).compare()
    assert planted.ran[-18:].count("baseline") == 6
    assert report.recommendation is not None
    assert report.recommendation.rounds == 6
    assert report.recommendation.speedup == pytest.approx(1.5, rel=1e-9)


def test_in_a_block_order_the_same_drift_is_taken_for_an_effect() -> None:
    """All of A, then all of B: the fault that the schedule is there for."""
    planted = Planted(lambda _, before: 0.1 * 1.02**before)
    taken = {name: [planted.run_alone(Job(name, {})) for _ in range(4)] for name in ("A", "B")}
    a, b = (explored(name, results) for name, results in taken.items())
    found = Speedups(reports.report(a, b)).of(b, a)
    assert found is not None
    assert found.ratio == pytest.approx(1.02**-4, rel=1e-6)
    assert found.high < 1


def explored(row_id: str, results: list[Outcome]) -> Measurement:
    row = reports.row(row_id, None, {"precision": row_id})
    row = msgspec.structs.replace(row, items_per_step=1)
    for index, result in enumerate(results, start=1):
        row = rows.with_round(row, result, "explore", index, index)
    return row


def test_interleaved_turns_are_not_called_unsteady_for_what_all_share() -> None:
    result = process([0.1 * 1.01**index for index in range(30)])
    assert flags_of(dataclasses.replace(result, turns=[15, 15])) == ()
    assert flags_of(result) != ()
