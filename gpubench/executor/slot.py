"""One job in a worker: what it was asked, what it answered, and the outcome of both."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace

import msgspec

from gpubench.executor.executor import Job
from gpubench.executor.outcome import Outcome, verdict
from gpubench.executor.process_flags import flags_of
from gpubench.executor.worker_process import OnPhase, Worker, WorkerError, WorkerFailed
from gpubench.hardware.nvml import Unavailable
from gpubench.report.model import HostUse, Memory, Protocol, Quality, Utilization
from gpubench.text import sentence
from gpubench.worker.messages import EvidenceCollected, MemoryRead, Prepared, RangeSeen, SamplesTaken, SeeRange

TURN_S = 0.15  # three blocks: after a switch they are on their own caches again


@dataclass
class Slot:
    """One job in a worker of its own, or beside others in one."""

    job: Job
    worker: Worker
    number: int
    started: float
    started_at: str
    kills: int
    deadline: float | None  # of everything it is asked (time.monotonic()); None: each answer has the whole time limit
    shared_with: list[str] = field(default_factory=list)
    limit_s: float | None = None  # the time until `deadline`
    prepared: Prepared | None = None
    parts: list[SamplesTaken] = field(default_factory=list)
    discarded: list[str] = field(default_factory=list)  # for heat: what each discarded sampling saw
    stopped: list[float] = field(default_factory=list)  # for how many seconds, in each sampling discarded for that
    last_quality: Quality | None = None
    memory: MemoryRead | None = None
    collected: EvidenceCollected | None = None
    proof_lost: str = ""  # why `collected` is None although it was asked for
    range: RangeSeen | None = None
    failure: Outcome | None = None
    lost: bool = False  # another one in the same process took it down: nothing is known of this one

    @property
    def alive(self) -> bool:
        """Whether it can still be asked."""
        return self.failure is None and not self.lost

    @property
    def sampled(self) -> SamplesTaken | None:
        """All turns as one; None before the first."""
        if not self.parts:
            return None
        device = [part.device_samples_s for part in self.parts]
        return SamplesTaken(
            samples_s=[value for part in self.parts for value in part.samples_s],
            device_samples_s=None if None in device else [value for values in device for value in values or ()],
            iterations_per_sample=self.parts[0].iterations_per_sample,
            unmet=self.parts[-1].unmet,
            warmup_s=sum(part.warmup_s for part in self.parts),
            started=self.parts[0].started,
            ended=self.parts[-1].ended,
        )

    @property
    def step_s(self) -> float:
        """Seconds of a step in the warm-up; 0 before."""
        return self.prepared.seconds_per_iteration if self.prepared else 0.0

    def see_range(self, limit_s: float, on_phase: OnPhase) -> None:
        """Asks for the range of the values. It comes after everything else: what goes wrong costs this figure alone."""
        try:
            self.range = self.worker.ask(SeeRange(self.number), RangeSeen, time.monotonic() + limit_s, on_phase)
        except WorkerFailed as error:
            self.range = RangeSeen(None, f"the step that would show it failed: {error.failed.reason}")
        except WorkerError as error:
            self.range = RangeSeen(None, f"the process did not get through the step that would show it: {error.reason}")


def outcome_of(
    slot: Slot,
    host: HostUse | None,
    utilization: Utilization | None,
    process_memory: int | Unavailable | None,
    busy_before: str,
) -> Outcome:
    """What `slot` gave, with its status; `busy_before`: why the device was not free before the run."""
    prepared, sampled, collected = slot.prepared, slot.sampled, slot.collected
    if prepared is None or sampled is None or (collected is None and not slot.proof_lost):
        return Outcome("failed", "The process gave no samples.", slot.started_at)  # a fault of gpubench's own
    phases = {**prepared.phases_s, "samples": sum(part.ended - part.started for part in slot.parts)}
    phases["warm-up"] = phases.get("warm-up", 0.0) + sampled.warmup_s
    memory: Memory | None = None
    if slot.memory:
        phases["memory"] = slot.memory.seconds
        memory = slot.memory.memory
        if isinstance(process_memory, Unavailable):
            reasons = {**memory.unavailable, "device_process_memory_bytes": process_memory.reason}
            memory = msgspec.structs.replace(memory, unavailable=reasons)
        else:
            memory = msgspec.structs.replace(memory, device_process_memory_bytes=process_memory)
    if collected:
        phases["evidence"] = collected.seconds
    if not slot.shared_with and len(slot.parts) == 1:
        phases["total"] = time.monotonic() - slot.started
    result = Outcome(
        status="ok",
        reason="",
        started_at=slot.started_at,
        prepared=prepared,
        sampled=sampled,
        last_quality=slot.last_quality,
        memory=memory,
        stages=slot.memory.stages if slot.memory else (),
        collected=collected,
        proof_lost=slot.proof_lost,
        range=slot.range,
        utilization=utilization,
        host=host,
        turns=[len(part.samples_s) for part in slot.parts] if len(slot.parts) > 1 else [],
        shared_with=slot.shared_with,
        phases_s=phases,
    )
    status, reason = verdict(result)
    return replace(
        result,
        status=status,
        reason=sentence(reason),
        flags=flags_of(result, busy_before, slot.discarded, slot.stopped),
        log_tail=slot.worker.log_tail() if status != "ok" else "",
    )


def blocks_of_a_turn(prepared: Prepared, protocol: Protocol) -> int:
    """How many samples make a turn: `TURN_S` of short steps, one sample of long ones."""
    iterations = math.ceil(protocol.block_s / max(prepared.seconds_per_iteration, 1e-9))
    block = max(protocol.block_s, iterations * prepared.seconds_per_iteration)
    return max(1, min(round(TURN_S / block), math.ceil(TURN_S / protocol.block_s)))
