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


def outcome(host: HostUse, *, gpu: bool, busy_share: float | None = None) -> Outcome:
    """A process with samples of `STEP_S`; on a GPU, which worked for that share of a step."""
    taken = sampled([STEP_S] * 20)
    if gpu:
        taken = msgspec.structs.replace(taken, device_samples_s=[STEP_S] * 20)
    busy_s = None if busy_share is None else busy_share * STEP_S
    collected = EvidenceCollected(evidence=[], flags=[], seconds=0.1, device_busy_s=busy_s)
    return Outcome("ok", "", "", prepared(), taken, collected=collected, host=host)


def contaminated(result: Outcome) -> list[str]:
    return [flag.detail for flag in flags_of(result) if flag.kind == CONTAMINATED.name]


def test_foreign_load_gates_every_row_of_a_cpu() -> None:
    assert contaminated(outcome(BUSY, gpu=False)) == ["other processes kept 3.0 cores busy, most of it pid 7 (miner)"]


@pytest.mark.parametrize("load", [{}, {"other_cores": 0.0, "steal_cores": 2.0}])
def test_foreign_load_gates_no_row_of_a_busy_gpu(load: dict[str, float]) -> None:
    assert contaminated(outcome(msgspec.structs.replace(BUSY, **load), gpu=True, busy_share=0.95)) == []


@pytest.mark.parametrize("load", [{}, {"other_cores": 0.0, "steal_cores": 2.0}])
@pytest.mark.parametrize(
    ("busy_share", "idle"),
    [
        (0.5, 40.0),  # the GPU waits for the host
        (0.95, 1.5),  # no core is left to launch from
        (None, 40.0),  # it is not known whether the GPU waits
        (0.95, None),  # nor how many cores were idle
    ],
)
def test_foreign_load_gates_where_the_gpu_may_wait_for_the_host(
    busy_share: float | None, idle: float | None, load: dict[str, float]
) -> None:
    host = msgspec.structs.replace(BUSY, idle_cores=idle, **load)
    assert len(contaminated(outcome(host, gpu=True, busy_share=busy_share))) == 1


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
