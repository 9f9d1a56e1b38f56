"""Whatever hangs before the first row is named while it lasts, and ended at --timeout."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from gpubench.cli import progress
from gpubench.errors import GpubenchError
from gpubench.executor import worker_process
from gpubench.executor.worker_pool import WorkerPool
from gpubench.report.model import Protocol
from gpubench.worker.messages import WorkloadChoice

HEAD = """
import time
from torch import nn
from gpubench import Workload
def hang(*_):
    print("asking a server", flush=True)
    time.sleep(600)
"""
MODEL = """
make = Workload(name="m", item="row", batch_size=1, build=hang, inputs=hang)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "phase"), [(f"{HEAD}\nhang()\n{MODEL}", "importing hangs.py"), (HEAD + MODEL, "building the model")]
)
def test_what_hangs_is_named_and_ended(
    tmp_path: Path, own_servers: None, monkeypatch: pytest.MonkeyPatch, content: str, phase: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(worker_process, "STILL_S", 0.5)
    (tmp_path / "hangs.py").write_text(content)
    choice = WorkloadChoice(reference="hangs.py:make", size=None, parameters={}, mode=None)
    told: list[str] = []
    with WorkerPool(choice, "cpu", Protocol(timeout_s=6), on_phase=told.append) as pool:
        with pytest.raises(GpubenchError) as caught:
            pool.describe(None)
        assert caught.value.message.lower() == (
            f"{phase} did not end within 6 s. the last line of its output: asking a server."
        )
        assert "raise --timeout" in caught.value.hint
    assert told.count(phase) > 2 and told[-1] == phase


def test_a_phase_that_lasts_gets_lines_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 1.0, 20.0, 21.0, 41.0, 61.0])
    monkeypatch.setattr("time.monotonic", lambda: next(moments))
    out = io.StringIO()
    lines = progress.Lines(Console(file=out))
    for phase in [*3 * ["importing a.py"], *3 * ["build"]]:
        lines.phase(phase)
    assert out.getvalue().splitlines() == [
        "    still importing a.py, for 20.0 s",
        "    still build, for 20.0 s",
        "    still build, for 40.0 s",
    ]
