"""What a pool gives its servers, and what it says of the device."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch._inductor.config

from gpubench.errors import GpubenchError
from gpubench.executor import fork_server, worker_pool
from gpubench.executor.fork_server import ForkServer
from gpubench.executor.local import LocalExecutor
from gpubench.executor.worker_pool import WorkerPool
from gpubench.hardware.find_device import DeviceAccess
from gpubench.hardware.nvml_call import Unavailable
from gpubench.report.model import Protocol
from gpubench.worker import prepared_model
from gpubench.worker.messages import Describe, Prepare, WorkloadChoice
from gpubench.worker.once import describe
from tests.running import MODELS

CHOICE = WorkloadChoice(reference=f"{MODELS}:good", size=None, parameters={}, mode=None)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The environments of the servers that pools make; their workers describe a GPU that cannot be watched."""
    environments: list[dict[str, str]] = []
    described = describe(Describe(CHOICE, "cpu"))
    card = msgspec.structs.replace(described.device, kind="cuda", index=1, uuid=None)
    described = msgspec.structs.replace(described, device=card, note="A sentence on the choice.")
    worker = SimpleNamespace(ask=lambda *_: described, kill=lambda: None)

    def make_server(environment: dict[str, str], *_: Any) -> Any:
        environments.append(environment)
        return SimpleNamespace(start=lambda: None, fork=lambda: worker, close=lambda: None)

    monkeypatch.setattr(worker_pool, "make_server", make_server)
    monkeypatch.setattr(worker_pool, "find_device", lambda *_: DeviceAccess(Unavailable("NVML is ill")))
    return environments


def test_a_run_on_the_cpu_sees_no_gpu(asked: list[dict[str, str]]) -> None:
    """Compiled code would make a CUDA context there."""
    for device in ("cpu", "auto", "cuda:0"):
        with WorkerPool(CHOICE, device, Protocol()) as pool:
            pool.begin_servers([{}])
    assert asked == [{"CUDA_VISIBLE_DEVICES": ""}, {}, {}]


def test_the_report_says_how_the_device_was_chosen_and_why_it_was_not_watched(asked: list[dict[str, str]]) -> None:
    with WorkerPool(CHOICE, "auto", Protocol()) as pool:
        pool.describe(None)
        assert pool.notes == ["A sentence on the choice.", "The GPU could not be watched: NVML is ill."]


def test_all_sides_are_measured_on_one_card(asked: list[dict[str, str]]) -> None:
    """The largest free card may be another one a moment later."""
    with WorkerPool(CHOICE, "auto", Protocol()) as a, WorkerPool(CHOICE, "auto", Protocol()) as b:
        LocalExecutor(a, {}, lambda _: None, {"a": a, "b": b}).describe(None, "a")
        assert (a.device, b.device) == ("cuda:1", "cuda:1")


@pytest.mark.parametrize(("files", "threads"), [((), 4), (("kernel",), 1)])
def test_no_compilers_are_started_where_everything_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: tuple[str, ...], threads: int
) -> None:
    """They would import torch while samples are taken."""

    class Enough(Exception):
        pass

    def stop(_: str) -> None:
        raise Enough

    for name in files:
        (tmp_path / name).touch()
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(prepared_model, "use_device", stop)
    request = Prepare(
        model=0, choice=CHOICE, device="cpu", configuration={}, protocol=Protocol(), tolerance=0.0,
        compile_cache=str(tmp_path), reference_folder=None,
    )  # fmt: skip
    with torch._inductor.config.patch(compile_threads=4):
        with pytest.raises(Enough):
            prepared_model.PreparedModel(request, lambda _: None).prepare()
        assert torch._inductor.config.compile_threads == threads


def test_a_server_that_is_ended_while_it_starts_says_by_what(tmp_path: Path) -> None:
    server = ForkServer({}, CHOICE.reference, tmp_path)
    server.start()
    assert server._process
    server._process.kill()
    with pytest.raises(GpubenchError, match="could not start: it was ended by SIGKILL"):
        server.wait_ready()


def test_a_compiler_that_is_not_asked_in_time_costs_the_server_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ForkServer({}, CHOICE.reference, tmp_path)
    server.wait_ready()
    monkeypatch.setattr(fork_server, "START_TIMEOUT_S", 0.0)
    assert server.prepare_toolchain(tmp_path / "toolchain").problem == ""
    monkeypatch.undo()
    try:
        server.fork().end()
    finally:
        server.close()
