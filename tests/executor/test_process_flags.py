"""Which load of the cores gates a row: any on a CPU; on a GPU only what the step waits for."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from gpubench.executor.outcome import Outcome
from gpubench.executor.process_flags import flags_of
from gpubench.flags import CONTAMINATED
from gpubench.report.model import HostUse, Utilization
from gpubench.worker.messages import EvidenceCollected
from tests.faults.scripted import prepared, sampled

STEP_S = 0.01
BUSY = HostUse(seconds=1.0, other_cores=3.0, busiest_other="pid 7 (miner)", idle_cores=40.0, steal_cores=0.0)


def outcome(
    host: HostUse, *, gpu: bool, busy_share: float | None = None, enqueue_share: float | None = None
) -> Outcome:
    """A process with samples of `STEP_S`; on a GPU, for shares of a step that it worked and that the host enqueued."""
    taken, ready = sampled([STEP_S] * 20), prepared()
    if gpu:
        taken = msgspec.structs.replace(taken, device_samples_s=[STEP_S] * 20)
        ready = msgspec.structs.replace(ready, enqueue_s=None if enqueue_share is None else enqueue_share * STEP_S)
    busy_s = None if busy_share is None else busy_share * STEP_S
    collected = EvidenceCollected(evidence=[], flags=[], seconds=0.1, device_busy_s=busy_s)
    return Outcome("ok", "", "", ready, taken, collected=collected, host=host)


def contaminated(result: Outcome) -> list[str]:
    return [flag.detail for flag in flags_of(result) if flag.kind == CONTAMINATED.name]


def test_foreign_load_gates_every_row_of_a_cpu() -> None:
    assert contaminated(outcome(BUSY, gpu=False)) == ["other processes kept 3.0 cores busy, most of it pid 7 (miner)"]


LOADS = pytest.mark.parametrize("load", [{}, {"other_cores": 0.0, "steal_cores": 2.0}])


@LOADS
@pytest.mark.parametrize(
    ("busy_share", "enqueue_share"),
    [
        (0.95, 0.3),
        (0.95, 1.0),  # the host is as slow, but the GPU has no pause
        (0.95, None),  # the step waits for the GPU, as a gradient scaler does: the host's own time is not known
        (0.7, 0.1),  # it pauses between the kernels of a CUDA graph
    ],
)
def test_foreign_load_gates_no_row_whose_gpu_does_not_wait_for_the_host(
    busy_share: float, enqueue_share: float | None, load: dict[str, float]
) -> None:
    host = msgspec.structs.replace(BUSY, **load)
    assert contaminated(outcome(host, gpu=True, busy_share=busy_share, enqueue_share=enqueue_share)) == []


@LOADS
@pytest.mark.parametrize(
    ("busy_share", "enqueue_share", "idle"),
    [
        (0.5, 0.9, 40.0),  # the GPU waits for the host
        (0.95, 0.3, 1.5),  # no core is left to launch from
        (None, None, 40.0),  # it is not known whether the GPU waits
        (0.5, None, 40.0),  # likewise
        (0.95, 0.3, None),  # nor how many cores were idle
    ],
)
def test_foreign_load_gates_where_the_gpu_may_wait_for_the_host(
    busy_share: float | None, enqueue_share: float | None, idle: float | None, load: dict[str, float]
) -> None:
    host = msgspec.structs.replace(BUSY, idle_cores=idle, **load)
    found = contaminated(outcome(host, gpu=True, busy_share=busy_share, enqueue_share=enqueue_share))
    assert len(found) == 1


def test_a_stranger_on_the_gpu_and_a_quota_gate_whatever_the_cores_do() -> None:
    quiet = HostUse(seconds=1.0, other_cores=0.0, steal_cores=0.0, idle_cores=40.0)
    stranger = dataclasses.replace(
        outcome(quiet, gpu=True, busy_share=0.95), utilization=Utilization(other_processes=["pid 7 (miner)"])
    )
    assert contaminated(stranger) == ["on the device as well: pid 7 (miner)"]
    held = msgspec.structs.replace(quiet, quota_throttled_s=0.4)
    assert contaminated(outcome(held, gpu=True, busy_share=0.95)) == [
        "the control group's CPU quota stopped it for 0.40 s"
    ]
