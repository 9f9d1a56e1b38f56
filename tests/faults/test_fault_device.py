"""Planted faults of the machine: heat, power limits, strangers on GPU and cores, a driver that tells nothing.

NVML is faked below its binding, and a CPU workload is measured in real processes as if it ran on that card.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gpubench.analysis.eligibility import cautions, exclusion
from gpubench.analysis.recommendation import recommend
from gpubench.cli.main import run as gpubench
from gpubench.executor import local as bench
from gpubench.executor.executor import Job
from gpubench.executor.local import LocalExecutor
from gpubench.executor.outcome import Outcome
from gpubench.executor.worker_pool import WorkerPool
from gpubench.executor.worker_process import Worker
from gpubench.flags import Flag
from gpubench.hardware.find_device import DeviceAccess, find_device
from gpubench.measure.readings import GPU_FIELDS
from gpubench.report import store
from gpubench.report.model import Configuration, HostUse, Measurement, Protocol, Report, Role
from gpubench.search.space import Candidate
from gpubench.search.strategy import SearchSpace, Strategy
from gpubench.study import launch, rows
from gpubench.worker.messages import Prepare
from tests import reports
from tests.fake_nvml import FUNCTIONS, NOT_SUPPORTED, FakeGpu, FakeNvml, fake_nvml
from tests.faults.scripted import (
    STEPS,
    Planted,
    builder,
    choice,
    orders,
    pool,
    row_of,
    study,
    threads_matrix,
)

__all__ = ["fake_nvml", "orders", "pool"]  # fixtures

HOT, POWER_CAP = 0x40, 0x04
QUICK = Protocol(block_s=0.01, min_samples=5, min_sampling_s=0.5, max_sampling_s=0.8, warmup_min_iterations=6,
                 warmup_min_s=0.1, warmup_max_s=0.3, cool_down_s=6.0)  # fmt: skip
SLOW: Configuration = {"precision": "fp32"}
FAST: Configuration = {"precision": "bf16-autocast"}  # 4 times as fast, by the workload `heats`
MINER = 4_194_305  # above the largest process id that Linux gives


class Card(FakeGpu):
    """A card that lists the processes of this run, and whose readings follow `script` from `arm` on."""

    script: Callable[[int], None] | None = None
    looks = 0
    watts = 100.0
    wrapped_j = 0.0  # what the energy counter lost

    def arm(self, script: Callable[[int], None]) -> None:
        """Calls `script` with the number of each look at the clock event reasons from now on, before it is answered."""
        self.looks, self.script = 0, script

    @property
    def reasons(self) -> int:
        self.looks += 1
        if self.script:
            self.script(self.looks)
        return self._reasons

    @reasons.setter
    def reasons(self, value: int) -> None:
        self._reasons = value

    @property
    def energy_millijoules(self) -> int:
        return round(1000 * (self.watts * time.monotonic() - self.wrapped_j))

    @energy_millijoules.setter
    def energy_millijoules(self, value: int) -> None:
        """It follows from the power."""


class Watched:
    """A bench in a pool with that card. Tells which phases began when; `at` is called as each begins."""

    def __init__(self, pool: WorkerPool, nvml: FakeNvml, card: Card, orders: Path) -> None:
        self.pool, self.nvml, self.card, self.orders = pool, nvml, card, orders
        self.phases: list[tuple[str, float]] = []
        self.at: Callable[[str, int], None] = lambda phase, number: None
        self.stranger: Callable[[Configuration], bool] = lambda _: False
        self.lists_us = True
        self.bench = LocalExecutor(pool, {}, self.on_phase)

    def on_phase(self, phase: str) -> None:
        self.phases.append((phase, time.monotonic()))
        self.at(phase, self.count(phase))

    def count(self, phase: str) -> int:
        return sum(name == phase for name, _ in self.phases)

    def began(self, phase: str, number: int) -> float:
        return [at for name, at in self.phases if name == phase][number - 1]

    def heat(self, hot: bool) -> None:
        """Steps under way take 4 times as long, and the card says why."""
        self.card.reasons = HOT if hot else 0
        mark = self.orders / "hot"
        mark.touch() if hot else mark.unlink(missing_ok=True)

    def strangers(self, of: Callable[[Configuration], bool]) -> None:
        """A miner is on the card whenever a configuration for which `of` says so is measured."""
        self.nvml.process_names[MINER] = "/home/somebody/miner --pool secret"
        self.stranger = of


@pytest.fixture
def watched(pool: WorkerPool, fake_nvml: FakeNvml, orders: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    card = Card(uuid="GPU-1")
    fake_nvml.add(card)
    found = find_device("cuda", "GPU-1")
    monkeypatch.setattr(pool, "_found", DeviceAccess(found.device))
    monkeypatch.setattr(pool, "choice", choice("heats"))
    monkeypatch.setattr(pool, "protocol", QUICK)
    monkeypatch.setattr(bench, "COOLING_LOOK_S", 0.05)
    monkeypatch.setattr(bench, "host_use", lambda *_: HostUse(seconds=1.0))  # whatever else this machine does
    made, start = Watched(pool, fake_nvml, card, orders), pool.worker

    def worker(configuration: Configuration) -> Worker:
        started = start(configuration)
        listed = [(started.pid, 2**28, made.lists_us), (MINER, 2**30, made.stranger(configuration))]
        card.processes = [(pid, size) for pid, size, there in listed if there]
        return started

    monkeypatch.setattr(pool, "worker", worker)
    yield made
    made.heat(False)


def step_s(result: Outcome) -> list[float]:
    assert result.sampled is not None, result.reason
    return sorted(result.sampled.samples_s)


def flags(result: Outcome) -> list[Flag]:
    """Those that speak of the device."""
    return [flag for flag in result.flags if flag.kind in ("throttled", "power_capped", "contaminated")]


def of_row(result: Outcome) -> Report:
    """A report in which that process is the whole of the row `fast`. A shared machine may make it unsteady as well."""
    planned = Candidate("fast", FAST, (Role(kind="alone", toggle="precision"),))
    return reports.report(reports.baseline(10.0), rows.allowed(rows.first_row(planned, result, 1), ["unsteady"]))


def test_a_worker_is_told_what_was_free_before_it_came(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int | None] = []
    ask = Worker.ask

    def noted(worker: Worker, request: object, *more: Any) -> Any:
        if isinstance(request, Prepare):
            told.append(request.device_free_bytes)
        return ask(worker, request, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(Worker, "ask", noted)
    watched.bench.run_alone(Job("row", SLOW))
    watched.card.fails["nvmlDeviceGetMemoryInfo"] = NOT_SUPPORTED
    watched.bench.run_alone(Job("row", SLOW))
    assert told == [(16 - 3) * 2**30, None]


# ----- heat and power


def test_samples_taken_in_heat_are_discarded_and_taken_again(watched: Watched) -> None:
    cooled: list[float] = []

    def cool() -> None:
        watched.heat(False)
        cooled.append(time.monotonic())

    def at(phase: str, number: int) -> None:
        if phase == "sampling" and number == 1:
            watched.heat(True)
        if phase == "cooling down":
            threading.Timer(0.6, cool).start()

    watched.at = at
    result = watched.bench.run_alone(Job("row", SLOW))
    assert result.status == "ok", result.reason
    assert [flag.kind for flag in flags(result)] == ["throttled"]
    assert flags(result)[0].detail.startswith("hw_thermal_slowdown (")
    assert flags(result)[0].detail.endswith("sampled again after cooling down, once")
    assert watched.count("sampling") == 2
    assert cooled[0] <= watched.began("sampling", 2)  # it waited until the bit had cleared
    assert step_s(result)[0] >= 0.004
    assert step_s(result)[len(step_s(result)) // 2] < 0.012  # none of the hot ones, which took 16 ms


def test_heat_for_a_moment_is_enough_to_discard(watched: Watched) -> None:
    def moment(look: int) -> None:
        watched.card.reasons = HOT if 7 <= look <= 8 else 0  # two readings of 50 ms in the middle of the sampling

    def at(phase: str, number: int) -> None:
        if phase == "sampling" and number == 1:
            watched.card.arm(moment)

    watched.at = at
    result = watched.bench.run_alone(Job("row", SLOW))
    assert result.status == "ok"
    assert watched.count("sampling") == 2
    assert [flag.kind for flag in flags(result)] == ["throttled"]


def test_heat_in_one_turn_of_a_round_costs_that_turn_alone(watched: Watched) -> None:
    def at(phase: str, number: int) -> None:
        if phase == "sampling" and number == 3:
            watched.heat(True)
        if phase == "cooling down":
            watched.heat(False)

    watched.at = at
    results = watched.bench.run_round([Job("A", SLOW), Job("B", SLOW)])
    assert watched.count("sampling") == 2 * Protocol().turns + 1
    hot, cool = results["B"], results["A"]  # in ABBA order the third turn is B's second
    assert [flag.kind for flag in flags(hot)] == ["throttled"]
    assert flags(cool) == []
    for result in (hot, cool):
        assert len(result.turns) == Protocol().turns
        assert step_s(result)[-3] < 0.016  # no turn of hot samples is left


def test_endless_heat_gives_no_figure(watched: Watched) -> None:
    watched.pool.protocol = msgspec.structs.replace(QUICK, min_sampling_s=0.2, max_sampling_s=0.3, cool_down_s=0.2)
    watched.card.reasons = HOT
    result = watched.bench.run_alone(Job("fast", FAST))
    assert watched.count("sampling") == 1 + QUICK.throttle_retries == 4
    assert result.status == "failed"
    assert result.reason.startswith("no valid samples: hw_thermal_slowdown (")
    assert result.reason.endswith("in each of 4 samplings.")
    assert [flag.kind for flag in flags(result)] == ["throttled"]
    row = row_of(of_row(result), "fast")
    assert (row.status, row.latency_s, row.fps, row.samples_s) == ("failed", None, None, [])
    assert exclusion(of_row(result), row, "fps", None) == f"failed: {result.reason.removesuffix('.')}"


def test_a_power_cap_is_how_a_card_works_and_only_told(watched: Watched) -> None:
    watched.card.reasons = POWER_CAP
    result = watched.bench.run_alone(Job("fast", FAST))
    assert watched.count("sampling") == 1
    assert [flag.kind for flag in flags(result)] == ["power_capped"]
    assert result.utilization is not None
    assert result.utilization.throttle_reasons == ["sw_power_cap"]
    found = of_row(result)
    assert exclusion(found, row_of(found, "fast"), "fps", None) is None
    assert any("power limit" in caution for caution in cautions(row_of(found, "fast")))


# ----- strangers on the card


def compared(watched: Watched, path: Path, allow: Sequence[str] = ()) -> Report:
    """A real study of the baseline and a row that is 4 times as fast."""
    baseline = Candidate("baseline", SLOW, (Role(kind="baseline"),))
    fast = Candidate("fast", FAST, (Role(kind="alone", toggle="precision"),))
    strategy = Strategy(name="one", propose=lambda history: [fast])
    space = SearchSpace(builder(), strategy, (), baseline)
    return study(path / "report.json", watched.bench, space, QUICK, allow=["unsteady", *allow]).compare()


def test_a_stranger_on_the_card_is_named_and_the_row_not_recommended(watched: Watched, tmp_path: Path) -> None:
    watched.strangers(lambda configuration: configuration == FAST)
    report = compared(watched, tmp_path)
    row = row_of(report, "fast")
    assert row.status == "ok"
    expected = f"contaminated: on the device as well: pid {MINER} (miner), 1024 MiB"
    assert expected in map(str, row.flags)
    assert "secret" not in str(report)
    assert "remeasured: a first process was contaminated" in map(str, row.flags)
    assert not any(flag.kind == "contaminated" for flag in row_of(report, "baseline").flags)
    assert row.latency_s is not None and row.latency_s.median < 0.004  # it is the fastest, and yet:
    assert report.recommendation is not None
    assert report.recommendation.id == "baseline"
    assert expected in recommend(report, "fps").excluded["fast"]
    assert any("other processes used the machine" in note for note in report.notes)


def test_without_a_stranger_that_row_is_recommended(watched: Watched, tmp_path: Path) -> None:
    report = compared(watched, tmp_path)
    assert report.recommendation is not None
    assert report.recommendation.id == "fast"
    seen = row_of(report, "fast").utilization
    assert seen is not None and seen.other_processes == []


def test_a_stranger_that_is_allowed_is_shown(watched: Watched, tmp_path: Path) -> None:
    watched.strangers(lambda configuration: configuration == FAST)
    report = compared(watched, tmp_path, allow=["contaminated"])
    assert report.recommendation is not None
    assert report.recommendation.id == "fast"
    shown = f"contaminated (allowed): on the device as well: pid {MINER} (miner), 1024 MiB"
    assert shown in map(str, row_of(report, "fast").flags)


def test_a_driver_that_does_not_list_us_accuses_nobody(watched: Watched) -> None:
    """In a container the driver's ids are others: the only process listed is likely to be ours."""
    watched.strangers(lambda _: True)
    watched.lists_us = False
    result = watched.bench.run_alone(Job("row", SLOW))
    assert flags(result) == []
    assert result.utilization is not None
    assert result.utilization.other_processes is None
    assert "cannot be told from others" in result.utilization.unavailable["other_processes"]


# ----- a driver that tells nothing, or nonsense


def test_a_driver_that_supports_nothing_leaves_the_row_valid(watched: Watched) -> None:
    watched.nvml.fails.update(dict.fromkeys(FUNCTIONS, NOT_SUPPORTED))
    result = watched.bench.run_alone(Job("fast", FAST))
    assert result.status == "ok", result.reason
    assert flags(result) == []
    assert watched.count("sampling") == 1
    seen = result.utilization
    assert seen is not None
    for name in GPU_FIELDS:
        assert getattr(seen, name) is None
        assert "not support" in seen.unavailable[name], name
    assert seen.process_cpu_percent is not None  # what the kernel tells is there
    found = of_row(result)
    row = row_of(found, "fast")
    assert exclusion(found, row, "fps", None) is None
    assert row.utilization is not None and row.utilization.energy_per_item_joules is None
    assert "not support" in row.utilization.unavailable["energy_per_item_joules"]
    assert row.memory is not None and row.memory.device_process_memory_bytes is None
    assert "not support" in row.memory.unavailable["device_process_memory_bytes"]


def test_energy_is_counted_over_the_samples(watched: Watched) -> None:
    result = watched.bench.run_alone(Job("fast", FAST))
    seen, sampled = row_of(of_row(result), "fast").utilization, result.sampled
    assert seen is not None and seen.energy_joules is not None and sampled is not None
    joules = watched.card.watts * (sampled.ended - sampled.started)
    assert seen.energy_joules == pytest.approx(joules, rel=0.05)
    items = 4 * len(sampled.samples_s) * sampled.iterations_per_sample
    assert seen.energy_per_item_joules == pytest.approx(seen.energy_joules / items)


def test_an_energy_counter_that_goes_back_gives_no_energy(watched: Watched) -> None:
    def wrap(look: int) -> None:
        if look == 7:
            watched.card.wrapped_j += 3000.0

    def at(phase: str, number: int) -> None:
        if phase == "sampling":
            watched.card.arm(wrap)

    watched.at = at
    result = watched.bench.run_alone(Job("fast", FAST))
    assert result.status == "ok"
    seen = row_of(of_row(result), "fast").utilization
    assert seen is not None
    assert (seen.energy_joules, seen.energy_per_item_joules) == (None, None)
    for name in ("energy_joules", "energy_per_item_joules"):
        assert seen.unavailable[name] == "the energy counter went back: the driver was reloaded or the GPU was reset"


# ----- strangers on the cores

# Nobody's processes: their parent ends at once, and they lead a session of their own. One thread for each core, which
# leave Python's lock while they hash.
STRAY = """
import hashlib, os, threading, time
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
def burn():
    while time.monotonic() < end:
        hashlib.pbkdf2_hmac("sha256", b"a", b"b", 100_000)
end = time.monotonic() + 60
for _ in range(os.cpu_count() or 1):
    threading.Thread(target=burn, daemon=True).start()
print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def stray() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", STRAY], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        pid = int(child.stdout.readline())
    yield pid
    os.kill(pid, 9)


@pytest.mark.measures  # beside other tests, another one's process may be the busiest
def test_load_by_others_is_told_with_who_it_is(pool: WorkerPool, stray: int) -> None:
    pool.choice, pool.protocol = choice("burns"), QUICK
    for _ in range(3):  # where yet another program is busier, it is named instead
        result = LocalExecutor(pool, {}, lambda _: None).run_alone(Job("row", SLOW))
        found = [str(flag) for flag in result.flags if flag.kind == "contaminated"]
        assert len(found) == 1
        assert found[0].startswith("contaminated: other processes kept ")
        if found[0].endswith(f"cores busy, most of it pid {stray} (python)"):
            break
    else:
        raise AssertionError(found)
    report = of_row(result)
    assert "others used the machine" in (exclusion(report, row_of(report, "fast"), "fps", None) or "")
    together = LocalExecutor(pool, {}, lambda _: None).run_round([Job("A", SLOW), Job("B", SLOW)])
    assert all("contaminated" in [flag.kind for flag in result.flags] for result in together.values())


def disturbed(
    path: Path, which: Callable[[int], bool], strict: bool = False, allow: Sequence[str] = ()
) -> tuple[Planted, Report]:
    """A run whose final is disturbed in the rounds (from 1) for which `which` says so.

    The choice then takes 3 times as long. Undisturbed it is twice as fast as the baseline. Exploring takes 2 processes,
    each round 3.
    """

    def seconds(row_id: str, position: int) -> float:
        slow = 3.0 if which((position + 1) // 3) else 1.0
        return 0.1 * (1 + 0.001 * (position % 3)) * (1.0 if row_id == "baseline" else 0.5 * slow)

    planted = Planted(seconds, flags=lambda _, position: FLAG if which((position + 1) // 3) else [])
    protocol = Protocol(final_rounds=4)
    made = study(path / "report.json", planted, threads_matrix(1), protocol, strict=strict, allow=allow)
    return planted, made.compare()


FLAG = ["contaminated: other processes kept 1.0 cores busy, most of it pid 7 (miner)"]


def test_undisturbed_rounds_are_used_and_disturbed_ones_made_up_for(tmp_path: Path) -> None:
    planted, report = disturbed(tmp_path, lambda index: index == 2)
    assert len(planted.ran) == 2 + 3 * 5  # a fifth round for the one that was disturbed
    found = report.recommendation
    assert found is not None
    assert (found.id, found.rounds) == ("threads=101", 4)
    assert found.speedup == pytest.approx(2.0, rel=0.005)
    row = row_of(report, "threads=101")
    assert row.latency_s is not None and row.latency_s.median == pytest.approx(0.05, rel=0.005)
    assert f"contaminated: in 1 of 6 processes: {FLAG[0].partition(': ')[2]}" in map(str, row.flags)


def test_what_is_allowed_does_not_make_the_figure_worse(tmp_path: Path) -> None:
    """Undisturbed rounds are better even where disturbed ones may be relied upon; they are not made up for then."""
    planted, report = disturbed(tmp_path, lambda index: index == 2, allow=["contaminated"])
    assert len(planted.ran) == 2 + 3 * 4
    found = report.recommendation
    assert found is not None
    assert (found.id, found.rounds) == ("threads=101", 3)
    assert found.speedup == pytest.approx(2.0, rel=0.005)
    row = row_of(report, "threads=101")
    assert any(str(flag).startswith("contaminated (allowed): in 1 of 5 processes") for flag in row.flags)
    assert [list(map(str, part.flags)) for part in row.rounds if part.flags] == [FLAG]  # as it was seen

    every = disturbed(tmp_path, lambda index: True, allow=["contaminated"])[1]
    assert every.recommendation is not None
    again = study(tmp_path / "report.json", planted, threads_matrix(1), Protocol(final_rounds=4), report=every)
    assert again.compare().recommendation is None  # without the option it counts again


def test_a_round_is_disturbed_as_a_whole(tmp_path: Path) -> None:
    """Its other side, whose own flags may say nothing, is not compared with rounds that it does not have."""
    planted = Planted(
        lambda row_id, position: 0.1 * (1.0 if row_id == "baseline" else 0.5) * (1 + 0.001 * (position % 3)),
        flags=lambda row_id, position: FLAG if row_id == "baseline" and position in (5, 6, 7) else [],
    )
    made = study(tmp_path / "report.json", planted, threads_matrix(1), Protocol(final_rounds=5))
    found = made.compare().recommendation
    assert found is not None
    assert found.speedup is not None and found.speedup_low is not None and found.speedup_high is not None
    assert 0.9 * found.speedup < found.speedup_low < found.speedup < found.speedup_high < 1.1 * found.speedup
    assert found.rounds == 5  # one was made up for


def test_a_round_of_which_a_side_is_missing_is_never_completed(tmp_path: Path) -> None:
    """As where a run was killed between the two; the machine is half as fast when it goes on."""

    def seconds(row_id: str, position: int) -> float:
        return (0.1 if row_id == "baseline" else 0.05) * (1 + 0.002 * (position % 2))

    path = tmp_path / "report.json"
    first = study(path, Planted(seconds), threads_matrix(1), Protocol(final_rounds=5)).compare()
    rows = []
    for row in first.measurements:
        kept = [
            (part, samples)
            for part, samples in row.samples_by_round()
            if not (row.id == "baseline" and part.phase == "final" and part.index == 2)
        ]
        flat = [value for _, samples in kept for value in samples]
        rows.append(msgspec.structs.replace(row, rounds=[part for part, _ in kept], samples_s=flat))
    cut = msgspec.structs.replace(first, measurements=rows, finished_at=None, recommendation=None)
    later = Planted(lambda row_id, position: 2 * seconds(row_id, position))
    found = study(path, later, threads_matrix(1), Protocol(final_rounds=5), report=cut).compare()
    indexes = {row.id: [part.index for part in row.rounds if part.phase == "final"] for row in found.measurements}
    assert indexes == {"baseline": [1, 3, 4, 5], "threads=101": [1, 2, 3, 4, 5], "control": [1, 2, 3, 4, 5]}
    assert later.ran == []
    assert found.recommendation is not None
    assert found.recommendation.speedup == pytest.approx(2.0, rel=0.01)


def test_three_undisturbed_rounds_are_enough(tmp_path: Path) -> None:
    planted, report = disturbed(tmp_path, lambda index: index in (1, 2, 4, 5))
    assert len(planted.ran) == 2 + 3 * 7  # no more than three rounds are made up for
    found = report.recommendation
    assert found is not None
    assert (found.id, found.rounds) == ("threads=101", 3)
    assert found.speedup == pytest.approx(2.0, rel=0.005)


def test_two_undisturbed_rounds_are_not(tmp_path: Path) -> None:
    _, report = disturbed(tmp_path, lambda index: index in (1, 2, 3, 4, 5))
    assert report.recommendation is None
    assert any("the baseline is not reliable" in note for note in report.notes)
    row = row_of(report, "threads=101")
    assert row.latency_s is not None and row.latency_s.median > 0.1  # of all rounds, and so marked


# ----- --strict and --allow


def test_strict_fails_what_is_flagged(tmp_path: Path) -> None:
    _, report = disturbed(tmp_path, lambda index: index == 2, strict=True)
    for row in report.measurements:
        assert row.status == "failed"
        assert row.reason.startswith("--strict: contaminated: in 1 of ")
        assert row.reason.endswith("(miner).")
    assert report.recommendation is None


def test_strict_leaves_what_is_not_flagged(tmp_path: Path) -> None:
    _, report = disturbed(tmp_path, lambda index: False, strict=True)
    assert {row.status for row in report.measurements} == {"ok"}
    assert report.recommendation is not None and report.recommendation.id == "threads=101"


def test_rows_that_are_too_noisy_to_compare_say_what_could_be_seen(tmp_path: Path) -> None:
    def seconds(row_id: str, position: int) -> float:
        return 0.1 * (1.1 if position % 3 == 0 else 1.0)  # 10 % between processes, not alike for both

    for strict in (False, True):
        made = study(tmp_path / "report.json", Planted(seconds), threads_matrix(1), Protocol(rounds=4), strict=strict)
        for row in made.compare().measurements[1:]:
            noisy = [str(flag) for flag in row.flags if flag.kind == "noisy"]
            assert len(noisy) == 1
            assert noisy[0].startswith("noisy: over 4 processes only an effect of ")
            percent = float(noisy[0].partition("effect of ")[2].partition("%")[0])
            assert 10 < percent < 100
            assert row.status == ("failed" if strict else "ok")
            assert not strict or row.reason == f"--strict: {noisy[0]}."
    quiet = study(tmp_path / "report.json", Planted(lambda *_: 0.1), threads_matrix(1), Protocol(rounds=4)).compare()
    assert all(row.flags == [] for row in quiet.measurements)


def test_what_moves_both_sides_of_a_duel_alike_makes_neither_noisy(tmp_path: Path) -> None:
    def seconds(row_id: str, position: int) -> float:
        # In every other round of the final the whole machine is half as fast. Exploring takes 2 processes.
        slow = position >= 2 and (position - 2) // 3 % 2
        return (0.1 if row_id == "baseline" else 0.05) * (2 if slow else 1)

    planted = Planted(seconds)
    report = study(tmp_path / "report.json", planted, threads_matrix(1), Protocol(final_rounds=6)).compare()
    assert len(planted.ran) == 2 + 3 * 6
    assert [row.flags for row in report.measurements] == [[], [], []]


def command(monkeypatch: pytest.MonkeyPatch, path: Path, flagged: Sequence[str], *more: str) -> tuple[int, Report]:
    """The exit code and the report of `gpubench compare-opts` whose processes are scripted.

    Compiled ones are twice as fast, and carry `flagged`.
    """
    planted = Planted(
        lambda row_id, _: 0.1 if row_id == "baseline" else 0.05,
        flags=lambda row_id, _: [] if row_id == "baseline" else flagged,
    )
    monkeypatch.setattr(launch, "local_executor", lambda *_: contextlib.nullcontext(planted))
    code = gpubench(
        ["compare-opts", f"{STEPS}:tiny", "--device", "cpu", "--set", "compile=default",
         "--strategy", "each", "--final-rounds", "0", "--quiet", "--format", "json", "--output", str(path), *more]
    )  # fmt: skip
    return code, store.load(path)


def other(report: Report) -> Measurement:
    return next(row for row in report.measurements if row.id != report.plan.baseline)


def test_strict_ends_with_1_and_the_flag_as_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, report = command(monkeypatch, tmp_path / "strict.json", FLAG, "--strict")
    assert code == 1
    assert (other(report).status, other(report).reason) == ("failed", f"--strict: {FLAG[0]}.")
    assert row_of(report, "baseline").status == "ok"
    assert report.recommendation is None or report.recommendation.id == "baseline"
    code, report = command(monkeypatch, tmp_path / "clean.json", [], "--strict")
    assert code == 0
    assert other(report).status == "ok"


def test_what_is_allowed_is_recommended_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, report = command(monkeypatch, tmp_path / "gated.json", FLAG)
    assert code == 0
    assert report.recommendation is not None and report.recommendation.id == "baseline"
    code, report = command(monkeypatch, tmp_path / "allowed.json", FLAG, "--allow", "contaminated", "--strict")
    assert code == 0
    assert report.plan.allow == ["contaminated"]
    assert report.recommendation is not None and report.recommendation.id == other(report).id
    assert list(map(str, other(report).flags)) == [FLAG[0].replace("contaminated:", "contaminated (allowed):")]


def test_a_flag_that_cannot_be_allowed_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("contaminatd", "wrong", "throttled"):
        assert gpubench(["compare-opts", f"{STEPS}:tiny", "--allow", name]) == 2
        said = capsys.readouterr().err
        assert f"Unknown flag '{name}'" in said
        assert "Known: contaminated, memoized, speed_changed, swapped, unsteady." in said
    assert gpubench(["compare-opts", f"{STEPS}:tiny", "--allow", "contaminatd"]) == 2
    assert "Did you mean 'contaminated'?" in capsys.readouterr().err
