"""Measures configurations in fresh processes: one alone, or several in turns that are interleaved."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

import msgspec

from gpubench.errors import GpubenchError
from gpubench.executor.outcome import Outcome, failed, now, oom_kills, sentence, verdict
from gpubench.executor.process_flags import flags_of
from gpubench.executor.worker_pool import WorkerPool, tolerance_of
from gpubench.executor.worker_process import OnPhase, Worker, WorkerError, WorkerFailed
from gpubench.flags import MEASURED_APART, THROTTLED
from gpubench.hardware.nvml import Unavailable
from gpubench.measure.host_use import host_use, read_host
from gpubench.measure.monitor import Monitor
from gpubench.report.model import Configuration, HostUse, Protocol, Quality, Status, Utilization, Value
from gpubench.toggles.sharing import groups
from gpubench.toggles.traits import compiles
from gpubench.worker.messages import (
    Checked,
    CheckLast,
    CollectEvidence,
    EvidenceCollected,
    MeasureMemory,
    MemoryRead,
    Prepare,
    Prepared,
    SamplesTaken,
    TakeSamples,
    WorkerRequest,
)

Reply = TypeVar("Reply", bound=msgspec.Struct)

TURN_S = 0.15  # three blocks: after a switch they are on their own caches again
COOLING_LOOK_S = 0.5  # between two looks at a device that cools down


class Throttled(Exception):
    """Heat or power supply held the device back in every sampling."""


@dataclass
class Slot:
    """One configuration in a worker of its own, or beside others in one."""

    row_id: str
    configuration: Configuration
    worker: Worker
    number: int
    started: float
    started_at: str
    kills: int
    deadline: float | None  # of everything it is asked (time.monotonic()); None: each answer has the whole time limit
    shared_with: list[str] = field(default_factory=list)
    prepared: Prepared | None = None
    parts: list[SamplesTaken] = field(default_factory=list)
    discarded: list[str] = field(default_factory=list)
    last_quality: Quality | None = None
    memory: MemoryRead | None = None
    collected: EvidenceCollected | None = None
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


class LocalExecutor:
    """Fresh processes of a pool. Whatever happens in one becomes its `Outcome`, never an exception.

    others: pools of another workload or interpreter, for the rows whose ids begin with these texts.
    """

    def __init__(
        self,
        pool: WorkerPool,
        defaults: Mapping[str, Value],
        on_phase: OnPhase,
        others: Mapping[str, WorkerPool] | None = None,
    ) -> None:
        self.pool, self.defaults, self.on_phase = pool, defaults, on_phase
        self.others = dict(others or {})
        self._shareable = True  # whether the workload gives each configuration a model of its own, as far as is known

    def _of(self, row_id: str) -> WorkerPool:
        """The pool that the row's workload, references and compile cache are of."""
        return next((one for prefix, one in self.others.items() if row_id.startswith(prefix)), self.pool)

    @property
    def protocol(self) -> Protocol:
        """How to measure."""
        return self.pool.protocol

    # ----- one configuration alone

    def alone(self, row_id: str, configuration: Configuration) -> Outcome:
        """`configuration` in a fresh process of its own: samples by the stopping rule, then memory."""
        failures: dict[str, Outcome] = {}
        with self._slots([(row_id, configuration)], failures) as slots:
            for slot in slots:
                slot.deadline = slot.started + self.protocol.timeout_s
                with self._monitor([slot]) as monitor, self._guard(slot, slots):
                    self._prepare(slot)
                    before = read_host([slot.worker.pid])
                    self._sample(slot, monitor, None)
                    host = host_use(before, read_host([slot.worker.pid]))
                    self._check(slot, every_batch=True)
                    slot.memory = self._ask(slot, MeasureMemory(slot.number), MemoryRead)
                    process_memory = monitor.device_process_memory_bytes()
                    utilization = monitor.window(slot.parts[0].started, slot.parts[0].ended)
                    self._collect_evidence(slot)
                    return self._result(slot, host, utilization, process_memory)
                failures[row_id] = slot.failure or broken(slot)
        return failures[row_id]

    # ----- several in turns

    def together(self, asked: Sequence[tuple[str, Configuration]], needs: int | None = None) -> dict[str, Outcome]:
        """One round: each in a fresh process (shared where they can and the protocol says so), sampled in turns.

        `needs`: bytes that all of them take together, where known. Where that much memory is not free, they are
        measured one after the other instead. One that another took down with it is not among the results.
        """
        if needs is not None and needs > self.pool.free_memory_bytes():
            return {row_id: self.alone(row_id, configuration) for row_id, configuration in asked}
        results: dict[str, Outcome] = {}
        shareable = self._shareable
        with self._slots(asked, results) as slots:
            for slot in slots:
                if slot.alive:
                    with self._guard(slot, slots):
                        self._prepare(slot)
            host: HostUse | None = None
            others: Utilization | None = None
            if living := [slot for slot in slots if slot.alive]:
                workers = list(dict.fromkeys(slot.worker.pid for slot in living))
                with self._monitor(living) as monitor:
                    before = read_host(workers)
                    self._take_turns(living, monitor)
                    host = host_use(before, read_host(workers))
                    others = self._others(monitor, living)
            for slot in slots:
                if slot.alive:
                    with self._guard(slot, slots):
                        # The other batches were checked when it ran alone; here its code is the same.
                        self._check(slot, every_batch=False)
                        self._collect_evidence(slot)
                if not slot.lost:
                    results[slot.row_id] = slot.failure or self._result(slot, host, others, None)
        if shareable and not self._shareable:
            self.pool.notes.append(
                "Its models share modules, so each configuration has processes of its own: in one process, what is "
                "applied to one would be applied to all."
            )
            return self.together(asked, needs)
        for row_id, configuration in asked:
            if len(asked) > 1 and row_id in results and results[row_id].status == "oom":
                # What does not fit beside others may well fit alone, and only that would be its own failure.
                apart = self.alone(row_id, configuration)
                flag = MEASURED_APART.flag("it did not fit into memory beside the others")
                results[row_id] = replace(apart, flags=(*apart.flags, flag))
        return results

    def _take_turns(self, slots: list[Slot], monitor: Monitor) -> None:
        for turn in range(self.protocol.turns):
            for slot in slots if turn % 2 == 0 else slots[::-1]:
                if slot.alive and slot.prepared is not None:
                    with self._guard(slot, slots):
                        self._sample(slot, monitor, blocks_of_a_turn(slot.prepared, self.protocol))

    def _others(self, monitor: Monitor, slots: list[Slot]) -> Utilization | None:
        spans = [part for slot in slots for part in slot.parts]
        if self.pool.monitored is None or not spans:
            return None
        return monitor.window(min(part.started for part in spans), max(part.ended for part in spans))

    # ----- parts of both

    @contextmanager
    def _slots(self, asked: Sequence[tuple[str, Configuration]], failures: dict[str, Outcome]) -> Iterator[list[Slot]]:
        """A slot for each that got a worker, in the order asked; every worker is dead afterwards."""
        slots: dict[str, Slot] = {}
        try:
            for members in self._grouped(asked):
                self.on_phase("reference")
                for row_id, configuration in members:
                    self._of(row_id).reference(configuration, self.defaults)
                self.on_phase("start")
                started, started_at, kills = time.monotonic(), now(), oom_kills()
                ids = [row_id for row_id, _ in members]
                try:
                    # The one that is compiled, if one is: the toolchain is made ready once, before the fork.
                    row_id, configuration = max(members, key=lambda one: compiles(one[1]))
                    worker = self._of(row_id).worker(configuration)
                except WorkerError as error:
                    failures |= {row_id: Outcome("crashed", sentence(error.reason), started_at) for row_id in ids}
                    continue
                except GpubenchError as error:  # a server in this environment (a preloaded allocator) cannot start
                    reason = sentence(error.message)
                    failures |= {row_id: Outcome("crashed", reason, started_at) for row_id in ids}
                    continue
                for number, (row_id, configuration) in enumerate(members):
                    others = [other for other in ids if other != row_id]
                    slots[row_id] = Slot(
                        row_id, configuration, worker, number, started, started_at, kills, None, others
                    )
            yield [slots[row_id] for row_id, _ in asked if row_id in slots]
        finally:
            for slot in slots.values():
                slot.worker.kill()  # it has nothing left to say; waiting would make Ctrl-C wait for a compilation

    def _grouped(self, asked: Sequence[tuple[str, Configuration]]) -> list[list[tuple[str, Configuration]]]:
        # A limit on memory holds for a process, so several in one would share it.
        if self.protocol.pair != "process" or self.protocol.max_memory_bytes or not self._shareable:
            return [[one] for one in asked]
        return [[asked[index] for index in group] for group in groups([one for _, one in asked])]

    @contextmanager
    def _guard(self, slot: Slot, slots: Sequence[Slot]) -> Iterator[None]:
        """Turns what ends the slot into its failure; those in the same process, if that is dead, are lost.

        Where the server that forks workers was ended, the slot that was under way is blamed, and its others are lost.
        """
        try:
            yield
        except (WorkerFailed, WorkerError) as error:
            if isinstance(error, WorkerFailed) and error.failed.kind == "shared":
                self._shareable = False
            killed = oom_kills() > slot.kills
            slot.failure = failed(error, slot.started_at, self.protocol.timeout_s, slot.worker.log_tail(), killed)
            if isinstance(error, WorkerError):
                for other in slots:
                    taken_down = other.worker is slot.worker or other.worker.is_lost()
                    other.lost = other.lost or (taken_down and other.failure is None)
        except Throttled as error:
            flags = (THROTTLED.flag(str(error)),)
            reason = sentence(f"no valid samples: {error}")
            slot.failure = Outcome("failed", reason, slot.started_at, flags=flags)

    def _monitor(self, slots: Sequence[Slot]) -> Monitor:
        ours = frozenset(slot.worker.pid for slot in slots)
        return Monitor(slots[0].worker.pid, self.pool.monitored, hz=self.protocol.monitor_hz, ours=ours)

    def _ask(self, slot: Slot, request: WorkerRequest, reply: type[Reply]) -> Reply:
        deadline = slot.deadline or time.monotonic() + self.protocol.timeout_s
        return slot.worker.ask(request, reply, deadline, self.on_phase)

    def _prepare(self, slot: Slot) -> None:
        pool = self._of(slot.row_id)
        reference = pool.reference(slot.configuration, self.defaults)
        request = Prepare(
            resident=slot.number,
            choice=pool.choice,
            device=pool.device,
            configuration=slot.configuration,
            protocol=self.protocol,
            tolerance=tolerance_of(slot.configuration),
            compile_cache=pool.compile_cache(slot.configuration),
            reference_folder=reference.folder,
            reference_problem=reference.problem,
        )
        slot.prepared = self._ask(slot, request, Prepared)

    def _sample(self, slot: Slot, monitor: Monitor, blocks: int | None) -> None:
        """Samples without heat: what was taken while the device was held back is discarded and taken again."""
        while True:
            sampled = self._ask(slot, TakeSamples(slot.number, blocks), SamplesTaken)
            slow = monitor.slowdowns(sampled.started, sampled.ended)
            if isinstance(slow, Unavailable) or not slow:
                slot.parts.append(sampled)
                return
            slot.discarded.append(" and ".join(slow))
            if len(slot.discarded) > self.protocol.throttle_retries:
                raise Throttled(f"{slot.discarded[-1]} in each of {len(slot.discarded)} samplings")
            self.on_phase("cooling down")
            deadline = time.monotonic() + self.protocol.cool_down_s
            while isinstance(slow := monitor.slowdowns_now(), list) and slow and time.monotonic() < deadline:
                time.sleep(COOLING_LOOK_S)

    def _check(self, slot: Slot, *, every_batch: bool) -> None:
        slot.last_quality = self._ask(slot, CheckLast(slot.number, every_batch), Checked).quality

    def _collect_evidence(self, slot: Slot) -> None:
        slot.collected = self._ask(slot, CollectEvidence(slot.number), EvidenceCollected)

    def _result(
        self,
        slot: Slot,
        host: HostUse | None,
        utilization: Utilization | None,
        process_memory: int | Unavailable | None,
    ) -> Outcome:
        prepared, sampled, collected = slot.prepared, slot.sampled, slot.collected
        if prepared is None or sampled is None or collected is None:
            return broken(slot)
        phases = {**prepared.phases_s, "samples": sum(part.ended - part.started for part in slot.parts)}
        phases["warm-up"] = phases.get("warm-up", 0.0) + sampled.warmup_s
        if slot.memory:
            phases["memory"] = slot.memory.seconds
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
            memory=slot.memory,
            collected=collected,
            device_process_memory_bytes=process_memory if isinstance(process_memory, int) else None,
            device_process_memory_problem=process_memory.reason if isinstance(process_memory, Unavailable) else "",
            utilization=utilization,
            host=host,
            turns=[len(part.samples_s) for part in slot.parts] if len(slot.parts) > 1 else [],
            shared_with=slot.shared_with,
            phases_s=phases,
            flags=flags_of(
                prepared,
                sampled,
                memory=slot.memory,
                collected=collected,
                utilization=utilization,
                host=host,
                busy_before=self.pool.busy_before,
                discarded=slot.discarded,
                interleaved=len(slot.parts) > 1,
            ),
        )
        status, reason = verdict(result)
        tail = slot.worker.log_tail() if status != "ok" else ""
        return replace(result, status=status, reason=sentence(reason), log_tail=tail)


def blocks_of_a_turn(prepared: Prepared, protocol: Protocol) -> int:
    """How many samples make a turn: `TURN_S` of short steps, one sample of long ones."""
    iterations = math.ceil(protocol.block_s / max(prepared.seconds_per_iteration, 1e-9))
    block = max(protocol.block_s, iterations * prepared.seconds_per_iteration)
    return max(1, min(round(TURN_S / block), math.ceil(TURN_S / protocol.block_s)))


def broken(slot: Slot) -> Outcome:
    """A process that neither failed nor gave samples: a fault of gpubench's own, told as such."""
    status: Status = "failed"
    return Outcome(status, "The process gave no samples.", slot.started_at)
