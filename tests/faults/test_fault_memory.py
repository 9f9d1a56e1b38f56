"""Planted faults of memory: leaks, room that torch knows nothing of, peaks of the build, limits that are passed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.faults import fault_toggle
from tests.faults.fault_toggle import LEAK_BYTES, OUTSIDE_BYTES
from tests.running import BUSY, gpubench_here

WORKLOADS = Path(__file__).with_name("fault_models.py")
MIB = 2**20


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of few long steps: as they are, with a leak, and with room taken from malloc itself."""
    folder = tmp_path_factory.mktemp("memory")
    with fault_toggle.planted(folder):
        done = gpubench_here(
            "compare-opts", f"{WORKLOADS}:slow", "--set", "fault=leak,outside", "--fix", "threads=1", "--strategy",
            "each", "--final-rounds", "0", *BUSY, "--format", "json", "--output", "report.json", cwd=folder,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def row_of(report: Any, value: str) -> Any:
    row = next(row for row in report["measurements"] if row["configuration"]["fault"] == value)
    assert row["status"] == "ok", row["reason"]
    return row


def flags(row: Any, kind: str) -> list[str]:
    return [flag["detail"] for flag in row["flags"] if flag["kind"] == kind]


@pytest.mark.slow
def test_a_leak_is_measured_and_flagged(report: Any) -> None:
    row = row_of(report, "leak")
    assert row["memory"]["growth_bytes_per_iteration"] == pytest.approx(LEAK_BYTES, abs=MIB)
    assert flags(row, "growing_memory") == ["64.0 MiB more with every step"]


@pytest.mark.slow
@pytest.mark.parametrize("value", ["off", "outside"])
def test_what_does_not_leak_is_not_flagged(value: str, report: Any) -> None:
    row = row_of(report, value)
    assert abs(row["memory"]["growth_bytes_per_iteration"]) < MIB
    assert flags(row, "growing_memory") == []


@pytest.mark.slow
def test_room_that_torch_knows_nothing_of_is_seen(report: Any) -> None:
    with_it, without = (row_of(report, value)["memory"]["host_peak_resident_bytes"] for value in ("outside", "off"))
    assert with_it - without == pytest.approx(OUTSIDE_BYTES, abs=48 * MIB)


def test_the_peak_of_building_is_not_the_peak_of_the_steps(tmp_path: Path) -> None:
    done = gpubench_here(
        "batch-sweep", f"{WORKLOADS}:built_in_much_room", "--sizes", "1", "--rounds", "1", "--format", "json",
        "--output", "report.json", cwd=tmp_path,
    )  # fmt: skip
    memory = json.loads(done.stdout)["measurements"][0]["memory"]
    built = memory["host_warmup_peak_resident_bytes"] - memory["host_resident_at_start_bytes"]
    stepped = memory["host_peak_resident_bytes"] - memory["host_resident_at_start_bytes"]
    assert built >= 300e6
    assert stepped <= 200e6
    assert memory["peak_memory_allocated_bytes"] is None
    assert "keeps no peaks" in memory["unavailable"]["peak_memory_allocated_bytes"]


@pytest.mark.slow
def test_memory_is_limited_on_a_cpu(tmp_path: Path) -> None:
    done = gpubench_here(
        "batch-sweep", f"{WORKLOADS}:hungry", "--sizes", "1", "24", "2", "--rounds", "1", "--max-memory", "1536MiB",
        "--format", "json", "--output", "report.json", cwd=tmp_path,
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert [(row["configuration"]["batch_size"], row["status"]) for row in report["measurements"]] == [
        (1, "ok"), (24, "oom"), (2, "ok"),
    ]  # fmt: skip
    assert report["sweep"]["largest_fitting"] == 2
    assert report["measurements"][1]["fps"] is None
