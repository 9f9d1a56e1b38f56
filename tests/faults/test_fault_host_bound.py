"""Whether the host or the GPU sets the pace of a step, from planted times."""

from __future__ import annotations

import msgspec
import pytest

from gpubench.executor.outcome import Outcome
from gpubench.executor.process_flags import flags_of, host_bound_fraction
from gpubench.report.model import StepCounts
from gpubench.study.rows import host_bound
from gpubench.worker.messages import EvidenceCollected
from tests.faults.scripted import prepared, sampled
from tests.reports import baseline

STEP_S = 0.010


def process(enqueue_s: float | None, busy_s: float | None, synchronizations: int | None = 0) -> Outcome:
    counts = StepCounts(synchronizations=synchronizations)
    return Outcome(
        "ok",
        "",
        "",
        msgspec.structs.replace(prepared(), enqueue_s=enqueue_s),
        msgspec.structs.replace(sampled([STEP_S] * 20), device_samples_s=[STEP_S] * 20),
        collected=EvidenceCollected(evidence=[], flags=[], seconds=0.0, counts=counts, device_busy_s=busy_s),
    )


@pytest.mark.parametrize(
    ("enqueue_s", "busy_s", "flagged"),
    [
        (0.0098, 0.004, True),  # the GPU waits for each launch
        (0.0120, 0.004, True),  # alone a step may even take the host longer
        (0.0098, None, True),  # kernels were lost
        (0.0002, 0.007, False),  # a CUDA graph: one launch, and gaps between its short kernels
        (0.0030, 0.009, False),
        (0.0098, 0.0095, False),  # a full queue of launches holds the host back
        (None, 0.004, False),
    ],
)
def test_a_step_is_host_bound_where_enqueueing_takes_its_time(
    enqueue_s: float | None, busy_s: float | None, flagged: bool
) -> None:
    kinds = [flag.kind for flag in flags_of(process(enqueue_s, busy_s))]
    assert ("host_bound" in kinds) == flagged


def test_a_step_that_waits_for_the_gpu_itself_says_that_the_hosts_time_is_not_known() -> None:
    result = process(0.0098, 0.004, synchronizations=1)
    assert host_bound_fraction(result) is None
    row = host_bound(baseline(), result)
    assert row.unavailable["host_bound_fraction"].startswith("the step waits for the GPU")


def test_the_share_is_in_the_row_and_at_most_one() -> None:
    assert host_bound(baseline(), process(0.003, 0.009)).host_bound_fraction == pytest.approx(0.3)
    assert host_bound(baseline(), process(0.012, 0.004)).host_bound_fraction == 1.0


def test_a_cpu_is_host_and_device_at_once() -> None:
    result = process(None, None)
    result = Outcome("ok", "", "", result.prepared, sampled([STEP_S] * 20), collected=result.collected)
    row = host_bound(baseline(), result)
    assert {row.unavailable[name] for name in ("host_bound_fraction", "device_busy_s")} == {
        "a CPU is host and device at once"
    }
