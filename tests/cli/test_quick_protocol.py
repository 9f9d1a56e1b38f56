"""The quick protocol of the tests is one that a report names, and nobody gets it unasked."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpubench.report import store
from gpubench.report.model import Protocol
from gpubench.study.launch import CPU_DRIFT, QUICK_NOTE, protocol_for
from tests.running import BUSY, MODELS, gpubench_here


@pytest.mark.usefixtures("whole_protocol")
def test_nobody_gets_the_quick_protocol_unasked() -> None:
    assert protocol_for("cpu", Protocol()) == Protocol(machine_drift=CPU_DRIFT)


def test_a_report_says_that_its_protocol_was_quick(tmp_path: Path) -> None:
    command = ["compare-opts", f"{MODELS}:good", "--set", "threads=1", "--strategy", "each", "--final-rounds", "0"]
    done = gpubench_here(*command, *BUSY, "--output", "report.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert QUICK_NOTE in " ".join(done.stdout.split())
    report = store.load(tmp_path / "report.json")
    assert QUICK_NOTE in report.notes
    assert report.protocol == protocol_for("cpu", Protocol(pair="round"))
    assert report.protocol.warmup_max_s < Protocol().warmup_max_s
    assert report.protocol.max_sampling_s < Protocol().max_sampling_s
