"""This machine's own noise: measured on identical configurations, kept, and carried by later reports."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from gpubench.analysis.noise import assumed_pair_spread, spread
from gpubench.analysis.recommend import recommend
from gpubench.analysis.statistics import detectable
from gpubench.cli import calibrate as command
from gpubench.cli.calibrate import lines
from gpubench.cli.main import run
from gpubench.errors import GpubenchError
from gpubench.hardware.facts import Device, Environment
from gpubench.results import calibrations, store
from gpubench.results.schema import Calibration, Configuration, Protocol
from gpubench.runner import calibrate as module
from gpubench.runner.bench import Bench
from gpubench.runner.calibrate import calibrate, fingerprint
from gpubench.runner.laboratory import Laboratory
from gpubench.runner.process import ProcessResult
from gpubench.worker.messages import WorkloadChoice
from tests.faults.scripted import process
from tests.reports import CPU, baseline, report, row

FOUND = Calibration(
    created_at="2026-01-02T03:04:05+00:00",
    fingerprint="0" * 16,
    workload="resnet50",
    rounds=8,
    between_processes=0.02,
    inside_process=0.005,
)
SHORT = Protocol(warmup_min_iterations=3, warmup_min_s=0.0, warmup_max_s=0.2)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPUBENCH_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def test_identical_configurations_are_measured_between_processes_and_inside_one(models: Path) -> None:
    told: list[str] = []
    choice = WorkloadChoice(reference=f"{models}:good", size=None, parameters={}, mode="inference")
    with Laboratory(choice, "cpu", SHORT) as laboratory:
        laboratory.describe(None)
        alike: dict[str, str | int] = {"precision": "fp32", "threads": 1}
        found = calibrate(laboratory, alike, "f" * 16, lambda *what: told.append(what[2]), rounds=3)
        assert laboratory.protocol == SHORT
    assert told == ["two processes"] * 3 + ["two copies in one process"] * 3
    assert 0 < found.between_processes < 2
    assert found.inside_process is not None
    assert 0 < found.inside_process < 2


def test_two_copies_share_a_process_and_two_processes_do_not(models: Path) -> None:
    choice = WorkloadChoice(reference=f"{models}:good", size=None, parameters={}, mode="inference")
    with Laboratory(choice, "cpu", SHORT) as laboratory:
        laboratory.describe(None)
        shared: dict[str, list[list[str]]] = {}
        for pair in ("process", "round"):
            laboratory.protocol = msgspec.structs.replace(SHORT, pair=pair)
            bench = Bench(laboratory, {}, lambda _: None)
            results = bench.together([(name, {"precision": "fp32", "threads": 1}) for name in ("A", "B")])
            shared[pair] = [list(results[name].shared_with) for name in ("A", "B")]
            assert [len(results[name].turns) for name in ("A", "B")] == [4, 4]
    assert shared == {"process": [["B"], ["A"]], "round": [[], []]}


def test_where_nothing_runs_there_is_no_calibration(models: Path) -> None:
    choice = WorkloadChoice(reference=f"{models}:leaves", size=None, parameters={}, mode="inference")
    with Laboratory(choice, "cpu", SHORT) as laboratory, pytest.raises(GpubenchError, match="No pair of processes"):
        laboratory.describe(None)
        calibrate(laboratory, {"threads": 1}, "f" * 16, lambda *_: None, rounds=1)


def test_it_is_kept_for_that_device_and_software_alone(state: Path) -> None:
    path = calibrations.save(FOUND)
    assert path.parent == state
    assert calibrations.load(FOUND.fingerprint) == FOUND
    assert calibrations.load("1" * 16) is None
    path.rename(path.with_name(f"{'1' * 16}.json"))
    assert calibrations.load("1" * 16) is None  # of another machine, whatever its name says
    path.write_text("{")
    assert calibrations.load(FOUND.fingerprint) is None


def test_a_folder_that_cannot_be_written_is_said(state: Path) -> None:
    state.write_text("a file")
    with pytest.raises(GpubenchError, match="cannot be kept in"):
        calibrations.save(FOUND)


def test_the_fingerprint_tells_machines_and_software_apart() -> None:
    software = Environment(platform="Linux", python="3.11.2", torch="2.13.0", variables={"OMP_NUM_THREADS": "2"})
    mark = fingerprint(CPU, software)
    assert mark == fingerprint(CPU, msgspec.structs.replace(software, variables={}))
    assert mark != fingerprint(CPU, msgspec.structs.replace(software, torch="2.12.0"))
    assert mark != fingerprint(Device(kind="cpu", name="Test CPU", cores=4), software)


def test_the_detectable_effect_is_told_for_so_many_rounds() -> None:
    text = "\n".join(lines(FOUND))
    assert "differ by 2.00%" in text
    assert f"{detectable(0.02, 10):.2%}" in text
    assert f"{detectable(0.005, 50):.2%}" in text
    assert "could not be measured" in "\n".join(lines(msgspec.structs.replace(FOUND, inside_process=None)))


def test_a_report_that_carries_it_uses_it_where_it_is_worse_than_what_is_assumed() -> None:
    """It is of processes within one round, so it cannot vouch for rows that were measured minutes apart."""
    rows = [baseline(0.1), row("fast", 0.08, {"precision": "bf16-autocast"})]
    plain = report(*rows, device=CPU)
    assert recommend(plain, "fps").recommendation.id == "fast"  # 10 % of noise are assumed
    quiet = msgspec.structs.replace(plain, calibration=FOUND)
    assert assumed_pair_spread(spread(quiet), *rows) == assumed_pair_spread(spread(plain), *rows) > 0.1
    noisy = msgspec.structs.replace(plain, calibration=msgspec.structs.replace(FOUND, between_processes=0.2))
    assert assumed_pair_spread(spread(noisy), *rows) == 0.2
    found = recommend(noisy, "fps").recommendation
    assert found.id == "baseline"
    assert "measured on this machine by `gpubench doctor --calibrate`" in " ".join(found.reasons)


def test_disturbed_rounds_are_left_out_where_there_are_enough_without(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(0)
    choice = WorkloadChoice(reference="resnet50", size=None, parameters={}, mode="inference")

    class Scripted:
        """Rounds of which some are disturbed, and far off."""

        def __init__(self, disturbed: int) -> None:
            self.left = disturbed

        def together(self, asked: Sequence[tuple[str, Configuration]]) -> dict[str, ProcessResult]:
            flags = ["contaminated: planted"] if self.left > 0 else []
            self.left -= 1
            off = 0.5 if flags else 0.01
            return {name: process([0.1 * math.exp(chance.gauss(0, off))] * 3, flags) for name, _ in asked}

    for disturbed, kept, told in ((3, 5, 0), (6, 8, 6)):
        monkeypatch.setattr(module, "Bench", lambda *_, left=disturbed: Scripted(left))
        laboratory = SimpleNamespace(protocol=SHORT, choice=choice)
        found = calibrate(laboratory, {}, "f" * 16, lambda *_: None, rounds=8)  # type: ignore[arg-type]
        assert (found.rounds, found.disturbed) == (kept, told)
        assert (found.between_processes < 0.05) == (told == 0)
        assert ("Others used the machine" in "\n".join(lines(found))) == bool(told)


def test_the_command_measures_keeps_and_tells(
    state: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "WORKLOAD", msgspec.structs.replace(command.WORKLOAD, size="tiny"))
    monkeypatch.setattr(command, "ROUNDS", 2)
    assert run(["doctor", "--calibrate", "--device", "cpu", "--format", "json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert (state / f"{found['fingerprint']}.json").exists()
    assert found["between_processes"] > 0
    assert "[4/4] two copies in one process" in said.err
    # And a later report carries it.
    arguments = ["compare-opts", f"{models}:good", "--set", "threads=1", "--strategy", "each", "--duel-rounds", "0"]
    assert run([*arguments, "--output", str(tmp_path / "report.json"), "--quiet"]) == 0
    assert store.load(tmp_path / "report.json").calibration.fingerprint == found["fingerprint"]
