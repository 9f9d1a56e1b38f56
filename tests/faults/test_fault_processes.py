"""Planted faults of processes: whatever one does, it becomes a row, and the next row is as if nothing had happened."""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import msgspec
import pytest

from gpubench.cli.main import run
from gpubench.executor import local
from gpubench.executor.executor import Job
from gpubench.executor.local import LocalExecutor
from gpubench.executor.worker_pool import WorkerPool
from gpubench.report import store
from gpubench.report.model import Measurement, Protocol, Role
from gpubench.report.store import json_schema
from gpubench.search.space import Candidate
from gpubench.study import rows
from gpubench.study.schedule import Schedule
from gpubench.toggles import all_toggles, get
from gpubench.worker.messages import WorkloadChoice
from tests.faults import fault_toggle
from tests.faults.fault_toggle import ENDS, LEAVES, LOOKS
from tests.running import BUSY, gpubench, gpubench_here, processes_mentioning

WORKLOADS = Path(__file__).with_name("fault_models.py")
ALIKE = 2.0  # times as fast or slow at most: the same work in two fresh processes
ALIKE_BYTES = 16 * 2**20  # what was kept is 512 MiB; the profiler's own memory, which no figure may hold, is 50 to 90

ENDINGS = {
    "segfault": ("crashed", "SIGSEGV"),
    "killed": ("crashed", "SIGKILL"),
    "exit": ("crashed", "code 3"),
    "kill-server": ("crashed", "worker"),
    "raise": ("failed", "ValueError: the [red]user's[/red] own mistake"),
    "oom": ("oom", "allocate"),
    "hang": ("timeout", "10 s"),
}


def seed_with_a_look_after_each_fault(ids: list[str]) -> int:
    """A seed with which every fault is followed by a row that looks; the run's own record of its order is checked."""
    for seed in itertools.count():
        schedule = Schedule(seed)
        schedule.shuffled(["baseline"])
        values = [row_id.removeprefix("fault=") for row_id in schedule.shuffled(ids)]
        if all(after in LOOKS for value, after in zip(values, [*values[1:], ""], strict=True) if value not in LOOKS):
            return seed
    raise AssertionError


@pytest.fixture(scope="module")
def run_of_faults(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[str]]:
    """One run in which every fault is followed by a row that looks: its report, and the order of its processes."""
    folder = tmp_path_factory.mktemp("processes")
    values = [*ENDS, *LEAVES, *LOOKS]
    seed = seed_with_a_look_after_each_fault([f"fault={value}" for value in values])
    with fault_toggle.planted(folder):
        done = gpubench_here(
            "compare-opts", f"{WORKLOADS}:paced", "--set", f"fault={','.join(values)}", "--fix", "threads=1",
            "--strategy", "each", "--timeout", "10s", "--seed", str(seed), "--final-rounds", "0", *BUSY, "--format",
            "json", "--output", "report.json", cwd=folder,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads((folder / "report.json").read_text())
    return found, fault_toggle.order(folder)


def row_of(report: Any, value: str) -> Any:
    return next(row for row in report["measurements"] if row["configuration"]["fault"] == value)


@pytest.mark.slow
@pytest.mark.parametrize("value", ENDINGS)
def test_a_failure_is_a_row(value: str, run_of_faults: tuple[Any, list[str]]) -> None:
    row, (status, words) = row_of(run_of_faults[0], value), ENDINGS[value]
    assert row["status"] == status
    assert words in row["reason"]
    assert row["reason"].endswith(".")
    assert "\n" not in row["reason"]
    assert row["fps"] is row["latency_s"] is row["memory"] is None
    assert row["samples_s"] == row["rounds"] == []


@pytest.mark.slow
@pytest.mark.parametrize("value", [*ENDS, *LEAVES])
def test_the_row_after_a_fault_is_measured_as_if_nothing_had_happened(
    value: str, run_of_faults: tuple[Any, list[str]]
) -> None:
    report, order = run_of_faults
    after = order[order.index(value) + 1]
    assert after in LOOKS
    row, baseline = row_of(report, after), report["measurements"][0]
    # It looked itself: flags of torch, threads, memory kept, processes left. `not_effective` would say what it found.
    assert row["status"] == baseline["status"] == "ok", row["reason"]
    # The quickest block: where others use the machine for a second, half of a row's blocks may be slow.
    assert 1 / ALIKE <= min(row["samples_s"]) / min(baseline["samples_s"]) <= ALIKE
    assert row["quality"] == baseline["quality"]
    for name in ("host_peak_resident_bytes", "host_resident_at_start_bytes", "host_warmup_peak_resident_bytes"):
        assert row["memory"][name] == pytest.approx(baseline["memory"][name], abs=ALIKE_BYTES), name


@pytest.mark.slow
def test_a_row_that_hoards_shows_it_itself(run_of_faults: tuple[Any, list[str]]) -> None:
    report, _ = run_of_faults
    kept = row_of(report, "hoard")["memory"]["host_peak_resident_bytes"]
    without = report["measurements"][0]["memory"]["host_peak_resident_bytes"]
    assert kept - without == pytest.approx(fault_toggle.HOARD_BYTES, abs=ALIKE_BYTES)


@pytest.mark.slow
def test_a_failed_row_is_never_recommended(run_of_faults: tuple[Any, list[str]]) -> None:
    recommendation = run_of_faults[0]["recommendation"]
    named = {row_id.rpartition("fault=")[2] for row_id in (recommendation["id"], *recommendation["tied_with"])}
    assert not named & set(ENDS)


@pytest.mark.slow
def test_the_log_of_a_failed_row_is_kept(run_of_faults: tuple[Any, list[str]]) -> None:
    row = row_of(run_of_faults[0], "raise")
    assert "about to fail" in row["log_tail"]
    assert "ValueError" in row["log_tail"]


@pytest.mark.slow
def test_the_report_of_faults_fits_its_schema(run_of_faults: tuple[Any, list[str]]) -> None:
    jsonschema.validate(run_of_faults[0], json_schema())


def test_no_worker_or_scratch_folder_is_left(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    done = gpubench(
        "compare-opts", f"{WORKLOADS}:paced", "--set", "fault=segfault", "--strategy", "each", "--final-rounds", "0",
        "--output", "report.json", cwd=tmp_path, env={**fault_toggle.install(tmp_path), "TMPDIR": str(scratch)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list(scratch.glob("gpubench-*")) == []
    assert processes_mentioning(str(scratch)) == []


def test_an_environment_that_cannot_start_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    broken = dataclasses.replace(
        get("allocator"), environment=lambda value: {"PYTHONHOME": "/nowhere"} if value == "tuned" else {}
    )
    monkeypatch.setitem(all_toggles(), "allocator", broken)
    command = ["compare-opts", f"{WORKLOADS}:paced", "--device", "cpu", "--set", "allocator=tuned"]
    command += ["--set", "threads=1", "--strategy", "each", "--final-rounds", "0", "--output", "report.json", "--quiet"]
    assert run(command) == 0
    statuses = {row.id: row.status for row in store.load(tmp_path / "report.json").measurements}
    assert statuses == {"baseline": "ok", "allocator=tuned": "crashed", "threads=1": "ok"}


# ----- a known speed


def test_a_sleep_of_20_ms_gives_50_fps(tmp_path: Path) -> None:
    done = gpubench_here(
        "compare-opts", f"{WORKLOADS}:sleeps", "--set", "threads=1", "--strategy", "each", "--final-rounds", "0", *BUSY,
        "--format", "json", "--output", "report.json", cwd=tmp_path,
    )  # fmt: skip
    for row in json.loads(done.stdout)["measurements"]:
        latency = row["latency_s"]
        assert 0.020 <= latency["p5"] <= latency["median"] <= latency["p95"]  # a sleep never ends early
        assert row["fps"] == pytest.approx(1 / latency["median"])
        assert latency["median"] == pytest.approx(statistics.median(row["samples_s"]))
        # On a busy machine many end late, but not all.
        assert 1 / min(row["samples_s"]) == pytest.approx(50, rel=0.02)


# ----- the proof, which comes last, is lost


@pytest.mark.parametrize(
    ("how", "words"),
    [("hang", "the profiled step did not end within 1 s"), ("die", "SIGSEGV in the profiled step")],
)
def test_a_lost_proof_costs_no_sample(how: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "PROOF_S", 0.5)
    choice = WorkloadChoice(reference=f"{WORKLOADS}:profiled", size=None, parameters={"how": how}, mode="inference")
    jobs = [Job("a", {"threads": 1}), Job("b", {"threads": 1})]
    with WorkerPool(choice, "cpu", Protocol(timeout_s=60)) as pool:
        executor = LocalExecutor(pool, {"threads": 1}, lambda _: None)
        alone = executor.run_alone(jobs[0])
        together = executor.run_round(jobs)
    for outcome in (alone, *together.values()):
        assert outcome.status == "unproven"
        assert words in outcome.reason
        assert outcome.sampled is not None
        assert outcome.sampled.samples_s
    assert alone.memory is not None
    row = rows.first_row(Candidate("a", {"threads": 1}, (Role(kind="baseline"),)), alone, 1)
    assert (row.status, row.fps is not None, row.compile_time_s is not None) == ("unproven", True, True)
    later = rows.with_round(msgspec.structs.replace(row, status="ok"), together["b"], "final", 1, 2)
    assert (later.status, len(later.rounds), later.fps is not None) == ("unproven", 2, True)
    assert any(str(flag).startswith("unreliable: unproven in a later process") for flag in later.flags)


@pytest.mark.parametrize(
    ("left_s", "step_s", "limit_s"), [(None, 0.01, 60.1), (None, 30.0, 360.0), (5.0, 0.01, 5.0), (None, 1e6, 600.0)]
)
def test_the_proof_has_a_minute_and_some_steps_and_no_more_than_is_left(
    left_s: float | None, step_s: float, limit_s: float
) -> None:
    asked: list[float] = []
    worker = SimpleNamespace(ask=lambda request, reply, deadline, on_phase: asked.append(deadline - time.monotonic()))
    deadline = None if left_s is None else time.monotonic() + left_s
    pool = SimpleNamespace(protocol=Protocol(timeout_s=600))
    slot = SimpleNamespace(worker=worker, number=0, step_s=step_s, deadline=deadline, job=Job("row", {}))
    LocalExecutor(pool, {}, lambda _: None)._collect_evidence(slot, whole=True)  # type: ignore[arg-type]
    assert asked == [pytest.approx(limit_s, abs=0.05)]


# ----- several resident workers: one dies, or the server of them all


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[LocalExecutor]:
    """Real processes of the paced model, to be asked for single rounds."""
    choice = WorkloadChoice(reference=f"{WORKLOADS}:paced", size=None, parameters={}, mode="inference")
    with fault_toggle.planted(tmp_path), WorkerPool(choice, "cpu", Protocol(timeout_s=60)) as pool:
        yield LocalExecutor(pool, {"fault": "off"}, lambda _: None)


def test_a_worker_that_dies_in_a_round_takes_nobody_else_down(bench: LocalExecutor) -> None:
    results = bench.run_round([Job(value, {"fault": value}) for value in ("off", "die-sampling", "fast")])
    assert {job_id: result.status for job_id, result in results.items()} == {
        "off": "ok", "die-sampling": "crashed", "fast": "ok",
    }  # fmt: skip
    assert "SIGSEGV" in results["die-sampling"].reason
    assert len(results["fast"].turns) == Protocol().turns


def test_the_side_that_shared_a_dead_process_is_not_blamed(bench: LocalExecutor) -> None:
    sides = LocalExecutor(bench.pool, {"fault": "off"}, lambda _: None, {"a": bench.pool, "b": bench.pool})
    results = sides.run_round([Job(side, {"fault": "die-sampling"}, side) for side in ("a", "b")])
    assert {job_id: result.status for job_id, result in results.items()} == {"a": "crashed"}


@pytest.mark.slow
def test_a_dying_server_is_blamed_on_one_only_and_the_next_round_goes_on(bench: LocalExecutor) -> None:
    asked = [Job(value, {"fault": value}) for value in ("off", "kill-server-sampling", "fast")]
    results = bench.run_round(asked)
    assert set(results) == {"kill-server-sampling"}
    assert results["kill-server-sampling"].status == "crashed"
    assert "starts workers" in results["kill-server-sampling"].reason
    again = bench.run_round([asked[0], asked[2]])
    assert [result.status for result in again.values()] == ["ok", "ok"]


def measured(value: str, folder: Path, *more: str) -> list[Measurement]:
    """The rows of a run with fresh data for the leaders, whose report recommends one that is valid."""
    with fault_toggle.planted(folder):
        done = gpubench_here(
            "compare-opts", f"{WORKLOADS}:leisurely", "--set", f"fault={value}", "--strategy", "each", "--fix",
            "threads=1", *more, *BUSY, "--output", "report.json", cwd=folder,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = store.load(folder / "report.json")
    assert report.recommendation is not None
    rows = [row for row in report.measurements if not row.is_control]
    assert report.recommendation.id == rows[-1 if "," in value else 0].id
    return rows


def rounds(row: Measurement, phase: str) -> list[int]:
    return [part.index for part in row.rounds if part.phase == phase]


def assert_died_later(row: Measurement, words: str) -> None:
    assert row.status == "crashed"
    assert words in row.reason
    assert any(str(flag).startswith("unreliable: crashed in a later process") for flag in row.flags)
    assert [part.phase for part in row.rounds] == ["explore"]  # what it gave before is kept


@pytest.mark.slow
def test_a_worker_that_dies_in_a_duel_is_told_and_the_duel_is_over(tmp_path: Path) -> None:
    baseline, dead = measured("later-segfault", tmp_path, "--final-rounds", "2")
    assert_died_later(dead, "SIGSEGV")
    assert baseline.status == "ok"
    assert not any(flag.kind == "unreliable" for flag in baseline.flags)
    assert rounds(baseline, "final") == [1]  # in a process of its own; then it has nobody left to meet


@pytest.mark.slow
def test_a_server_that_dies_in_a_race_is_told_and_the_others_race_on(tmp_path: Path) -> None:
    baseline, dead, other = measured("later-kill-server,fast", tmp_path, "--final-rounds", "1")
    assert_died_later(dead, "starts workers")
    assert baseline.status == other.status == "ok"
    assert not any(flag.kind == "unreliable" for row in (baseline, other) for flag in row.flags)
    assert rounds(baseline, "runoff") == rounds(other, "runoff") == [2, 3, 4]  # one more for the one that was lost
    assert rounds(baseline, "final") == rounds(other, "final") == [1]
