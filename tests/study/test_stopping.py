"""Stopping does not wait for what is under way."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpubench.executor import worker_process as workers
from gpubench.executor.executor import Job
from gpubench.executor.local import LocalExecutor
from gpubench.executor.worker_pool import WorkerPool
from gpubench.report.model import Protocol
from gpubench.worker.messages import WorkloadChoice
from tests.running import processes_mentioning


@pytest.mark.usefixtures("own_servers")
def test_an_interruption_ends_a_busy_worker_at_once(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "EXIT_WAIT_S", 3600.0)  # whoever waits for the worker's own end hangs here
    monkeypatch.setenv("GPUBENCH_TEST_MARK", mark := f"mark-{tmp_path.name}")
    choice = WorkloadChoice(reference=f"{models}:hangs_in_bf16", size=None, parameters={}, mode="inference")

    def interrupt(phase: str) -> None:
        if phase == "first step":
            raise KeyboardInterrupt

    configuration: dict[str, str | int] = {"precision": "bf16-autocast"}
    with (
        WorkerPool(choice, "cpu", Protocol()) as pool,
        pytest.raises(KeyboardInterrupt),
    ):
        LocalExecutor(pool, {"precision": "fp32"}, interrupt).run_alone(Job("row", configuration))
    assert processes_mentioning(mark) == []
