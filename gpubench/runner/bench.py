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
from gpubench.hardware.nvml import Unavailable
from gpubench.measure.host_use import host_use, read_host
from gpubench.measure.monitor import Monitor
from gpubench.results.schema import Configuration, HostUse, Protocol, Quality, Status, Utilization, Value
from gpubench.runner.flags import flags_of
from gpubench.runner.laboratory import Laboratory, tolerance_of
from gpubench.runner.process import ProcessResult, failed, now, oom_kills, sentence, verdict
from gpubench.runner.workers import OnPhase, Worker, WorkerError, WorkerFailed
from gpubench.toggles.sharing import groups
from gpubench.worker.messages import (
    Checked,
    CheckLast,
    MeasureMemory,
    MemoryRead,
    Prepare,
    Prepared,
    Prove,
    Proved,
    Sample,
    Sampled,
    WorkerRequest,
)

Reply = TypeVar("Reply", bound=msgspec.Struct)

TURN_S = 0.15  # three blocks: after a switch they are on their own caches again
COOLING_LOOK_S = 0.5  # between two looks at a device that cools down


class Throttled(Exception):
    """Heat or power supply held the device back in every sampling."""


@dataclass
class Seat:
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
    parts: list[Sampled] = field(default_factory=list)
    discarded: list[str] = field(default_factory=list)
    last_quality: Quality | None = None
    memory: MemoryRead | None = None
    proved: Proved | None = None
    failure: ProcessResult | None = None
    lost: bool = False  # another one in the same process took it down: nothing is known of this one

    @property
    def alive(self) -> bool:
        """Whether it can still be asked."""
        return self.failure is None and not self.lost

    @property
    def sampled(self) -> Sampled | None:
        """All turns as one; None before the first."""
        if not self.parts:
            return None
        device = [part.device_samples_s for part in self.parts]
        return Sampled(
            samples_s=[value for part in self.parts for value in part.samples_s],
            device_samples_s=None if None in device else [value for values in device for value in values or ()],
            iterations_per_sample=self.parts[0].iterations_per_sample,
            unmet=self.parts[-1].unmet,
            warmup_s=sum(part.warmup_s for part in self.parts),
            started=self.parts[0].started,
            ended=self.parts[-1].ended,
        )


class Bench:
    """Fresh processes of a laboratory. Whatever happens in one becomes its `ProcessResult`, never an exception.

    others: laboratories of another workload or interpreter, for the rows whose ids begin with these texts.
    """

    def __init__(
        self,
        laboratory: Laboratory,
        defaults: Mapping[str, Value],
        on_phase: OnPhase,
        others: Mapping[str, Laboratory] | None = None,
    ) -> None:
        self.laboratory, self.defaults, self.on_phase = laboratory, defaults, on_phase
        self.others = dict(others or {})
        self._shareable = True  # whether the workload gives each configuration a model of its own, as far as is known

    def _of(self, row_id: str) -> Laboratory:
        """The laboratory that the row's workload, references and compile cache are of."""
        return next((one for prefix, one in self.others.items() if row_id.startswith(prefix)), self.laboratory)

    @property
    def protocol(self) -> Protocol:
        """How to measure."""
        return self.laboratory.protocol

    # ----- one configuration alone

    def alone(self, row_id: str, configuration: Configuration) -> ProcessResult:
        """`configuration` in a fresh process of its own: samples by the stopping rule, then memory."""
        failures: dict[str, ProcessResult] = {}
        with self._seats([(row_id, configuration)], failures) as seats:
            for seat in seats:
                seat.deadline = seat.started + self.protocol.timeout_s
                with self._monitor([seat]) as monitor, self._guard(seat, seats):
                    self._prepare(seat)
                    before = read_host([seat.worker.pid])
                    self._sample(seat, monitor, None)
                    host = host_use(before, read_host([seat.worker.pid]))
                    self._check(seat, every_batch=True)
                    seat.memory = self._ask(seat, MeasureMemory(seat.number), MemoryRead)
                    process_memory = monitor.device_process_memory_bytes()
                    utilization = monitor.window(seat.parts[0].started, seat.parts[0].ended)
                    self._prove(seat)
                    return self._result(seat, host, utilization, process_memory)
                failures[row_id] = seat.failure or broken(seat)
        return failures[row_id]

    # ----- several in turns

    def together(
        self, asked: Sequence[tuple[str, Configuration]], needs: int | None = None
    ) -> dict[str, ProcessResult]:
        """One round: each in a fresh process (shared where they can and the protocol says so), sampled in turns.

        `needs`: bytes that all of them take together, where known. Where that much memory is not free, they are
        measured one after the other instead. One that another took down with it is not among the results.
        """
        if needs is not None and needs > self.laboratory.free_memory_bytes():
            return {row_id: self.alone(row_id, configuration) for row_id, configuration in asked}
        results: dict[str, ProcessResult] = {}
        shareable = self._shareable
        with self._seats(asked, results) as seats:
            for seat in seats:
                if seat.alive:
                    with self._guard(seat, seats):
                        self._prepare(seat)
            host: HostUse | None = None
            others: Utilization | None = None
            if living := [seat for seat in seats if seat.alive]:
                workers = list(dict.fromkeys(seat.worker.pid for seat in living))
                with self._monitor(living) as monitor:
                    before = read_host(workers)
                    self._take_turns(living, monitor)
                    host = host_use(before, read_host(workers))
                    others = self._others(monitor, living)
            for seat in seats:
                if seat.alive:
                    with self._guard(seat, seats):
                        # The other batches were checked when it ran alone; here its code is the same.
                        self._check(seat, every_batch=False)
                        self._prove(seat)
                if not seat.lost:
                    results[seat.row_id] = seat.failure or self._result(seat, host, others, None)
        if shareable and not self._shareable:
            self.laboratory.notes.append(
                "Its models share modules, so each configuration has processes of its own: in one process, what is "
                "applied to one would be applied to all."
            )
            return self.together(asked, needs)
        for row_id, configuration in asked:
            if len(asked) > 1 and row_id in results and results[row_id].status == "oom":
                # What does not fit beside others may well fit alone, and only that would be its own failure.
                apart = self.alone(row_id, configuration)
                flag = "measured_apart: it did not fit into memory beside the others"
                results[row_id] = replace(apart, flags=(*apart.flags, flag))
        return results

    def _take_turns(self, seats: list[Seat], monitor: Monitor) -> None:
        for turn in range(self.protocol.turns):
            for seat in seats if turn % 2 == 0 else seats[::-1]:
                if seat.alive and seat.prepared is not None:
                    with self._guard(seat, seats):
                        self._sample(seat, monitor, blocks_of_a_turn(seat.prepared, self.protocol))

    def _others(self, monitor: Monitor, seats: list[Seat]) -> Utilization | None:
        spans = [part for seat in seats for part in seat.parts]
        if self.laboratory.monitored is None or not spans:
            return None
        return monitor.window(min(part.started for part in spans), max(part.ended for part in spans))

    # ----- parts of both

    @contextmanager
    def _seats(
        self, asked: Sequence[tuple[str, Configuration]], failures: dict[str, ProcessResult]
    ) -> Iterator[list[Seat]]:
        """A seat for each that got a worker, in the order asked; every worker is dead afterwards."""
        seats: dict[str, Seat] = {}
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
                    row_id, configuration = max(members, key=lambda one: one[1].get("compile", "off") != "off")
                    worker = self._of(row_id).worker(configuration)
                except WorkerError as error:
                    failures |= {row_id: ProcessResult("crashed", sentence(error.reason), started_at) for row_id in ids}
                    continue
                except GpubenchError as error:  # a server in this environment (a preloaded allocator) cannot start
                    reason = sentence(error.message)
                    failures |= {row_id: ProcessResult("crashed", reason, started_at) for row_id in ids}
                    continue
                for number, (row_id, configuration) in enumerate(members):
                    others = [other for other in ids if other != row_id]
                    seats[row_id] = Seat(
                        row_id, configuration, worker, number, started, started_at, kills, None, others
                    )
            yield [seats[row_id] for row_id, _ in asked if row_id in seats]
        finally:
            for seat in seats.values():
                seat.worker.kill()  # it has nothing left to say; waiting would make Ctrl-C wait for a compilation

    def _grouped(self, asked: Sequence[tuple[str, Configuration]]) -> list[list[tuple[str, Configuration]]]:
        # A limit on memory holds for a process, so several in one would share it.
        if self.protocol.pair != "process" or self.protocol.max_memory_bytes or not self._shareable:
            return [[one] for one in asked]
        return [[asked[index] for index in group] for group in groups([one for _, one in asked])]

    @contextmanager
    def _guard(self, seat: Seat, seats: Sequence[Seat]) -> Iterator[None]:
        """Turns what ends the seat into its failure; those in the same process, if that is dead, are lost.

        Where the server that forks workers was ended, the seat that was under way is blamed, and its others are lost.
        """
        try:
            yield
        except (WorkerFailed, WorkerError) as error:
            if isinstance(error, WorkerFailed) and error.failed.kind == "shared":
                self._shareable = False
            killed = oom_kills() > seat.kills
            seat.failure = failed(error, seat.started_at, self.protocol.timeout_s, seat.worker.log_tail(), killed)
            if isinstance(error, WorkerError):
                for other in seats:
                    taken_down = other.worker is seat.worker or other.worker.is_lost()
                    other.lost = other.lost or (taken_down and other.failure is None)
        except Throttled as error:
            flags = (f"throttled: {error}",)
            reason = sentence(f"no valid samples: {error}")
            seat.failure = ProcessResult("failed", reason, seat.started_at, flags=flags)

    def _monitor(self, seats: Sequence[Seat]) -> Monitor:
        ours = frozenset(seat.worker.pid for seat in seats)
        return Monitor(seats[0].worker.pid, self.laboratory.monitored, hz=self.protocol.monitor_hz, ours=ours)

    def _ask(self, seat: Seat, request: WorkerRequest, reply: type[Reply]) -> Reply:
        deadline = seat.deadline or time.monotonic() + self.protocol.timeout_s
        return seat.worker.ask(request, reply, deadline, self.on_phase)

    def _prepare(self, seat: Seat) -> None:
        laboratory = self._of(seat.row_id)
        reference = laboratory.reference(seat.configuration, self.defaults)
        request = Prepare(
            resident=seat.number,
            choice=laboratory.choice,
            device=laboratory.device,
            configuration=seat.configuration,
            protocol=self.protocol,
            tolerance=tolerance_of(seat.configuration),
            compile_cache=laboratory.compile_cache(seat.configuration),
            reference_folder=reference.folder,
            reference_problem=reference.problem,
        )
        seat.prepared = self._ask(seat, request, Prepared)

    def _sample(self, seat: Seat, monitor: Monitor, blocks: int | None) -> None:
        """Samples without heat: what was taken while the device was held back is discarded and taken again."""
        while True:
            sampled = self._ask(seat, Sample(seat.number, blocks), Sampled)
            slow = monitor.slowdowns(sampled.started, sampled.ended)
            if isinstance(slow, Unavailable) or not slow:
                seat.parts.append(sampled)
                return
            seat.discarded.append(" and ".join(slow))
            if len(seat.discarded) > self.protocol.throttle_retries:
                raise Throttled(f"{seat.discarded[-1]} in each of {len(seat.discarded)} samplings")
            self.on_phase("cooling down")
            deadline = time.monotonic() + self.protocol.cool_down_s
            while isinstance(slow := monitor.slowdowns_now(), list) and slow and time.monotonic() < deadline:
                time.sleep(COOLING_LOOK_S)

    def _check(self, seat: Seat, *, every_batch: bool) -> None:
        seat.last_quality = self._ask(seat, CheckLast(seat.number, every_batch), Checked).quality

    def _prove(self, seat: Seat) -> None:
        seat.proved = self._ask(seat, Prove(seat.number), Proved)

    def _result(
        self,
        seat: Seat,
        host: HostUse | None,
        utilization: Utilization | None,
        process_memory: int | Unavailable | None,
    ) -> ProcessResult:
        prepared, sampled, proved = seat.prepared, seat.sampled, seat.proved
        if prepared is None or sampled is None or proved is None:
            return broken(seat)
        phases = {**prepared.phases_s, "samples": sum(part.ended - part.started for part in seat.parts)}
        phases["warm-up"] = phases.get("warm-up", 0.0) + sampled.warmup_s
        if seat.memory:
            phases["memory"] = seat.memory.seconds
        phases["evidence"] = proved.seconds
        if not seat.shared_with and len(seat.parts) == 1:
            phases["total"] = time.monotonic() - seat.started
        result = ProcessResult(
            status="ok",
            reason="",
            started_at=seat.started_at,
            prepared=prepared,
            sampled=sampled,
            last_quality=seat.last_quality,
            memory=seat.memory,
            proved=proved,
            device_process_memory_bytes=process_memory if isinstance(process_memory, int) else None,
            device_process_memory_problem=process_memory.reason if isinstance(process_memory, Unavailable) else "",
            utilization=utilization,
            host=host,
            turns=[len(part.samples_s) for part in seat.parts] if len(seat.parts) > 1 else [],
            shared_with=seat.shared_with,
            phases_s=phases,
            flags=flags_of(
                prepared,
                sampled,
                memory=seat.memory,
                proved=proved,
                utilization=utilization,
                host=host,
                busy_before=self.laboratory.busy_before,
                discarded=seat.discarded,
                interleaved=len(seat.parts) > 1,
            ),
        )
        status, reason = verdict(result)
        tail = seat.worker.log_tail() if status != "ok" else ""
        return replace(result, status=status, reason=sentence(reason), log_tail=tail)


def blocks_of_a_turn(prepared: Prepared, protocol: Protocol) -> int:
    """How many samples make a turn: `TURN_S` of short steps, one sample of long ones."""
    iterations = math.ceil(protocol.block_s / max(prepared.seconds_per_iteration, 1e-9))
    block = max(protocol.block_s, iterations * prepared.seconds_per_iteration)
    return max(1, min(round(TURN_S / block), math.ceil(TURN_S / protocol.block_s)))


def broken(seat: Seat) -> ProcessResult:
    """A process that neither failed nor gave samples: a fault of gpubench's own, told as such."""
    status: Status = "failed"
    return ProcessResult(status, "The process gave no samples.", seat.started_at)
