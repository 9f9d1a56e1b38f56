"""Measures jobs in fresh processes of this machine: one alone, or a round of several that are sampled in turns."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import msgspec

from gpubench.errors import GpubenchError
from gpubench.executor.executor import Job
from gpubench.executor.outcome import Outcome, failed, lost_proof, now, oom_kills
from gpubench.executor.slot import Slot, blocks_of_a_turn, outcome_of
from gpubench.executor.worker_pool import WorkerPool
from gpubench.executor.worker_process import OnPhase, WorkerError, WorkerFailed
from gpubench.flags import INTERRUPTED, MEASURED_APART, THROTTLED, Flag
from gpubench.hardware.nvml import Unavailable
from gpubench.measure.host_use import host_use, read_host
from gpubench.measure.monitor import Monitor
from gpubench.report.model import Configuration, HostUse, Protocol, Utilization, Value
from gpubench.text import sentence
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
    ProbeResult,
    SamplesTaken,
    TakeSamples,
    WorkerRequest,
    WorkloadChoice,
)

Reply = TypeVar("Reply", bound=msgspec.Struct)

# A configuration whose compile cache is empty has so many times the limit: on few cores the search for kernels alone
# can take as long as is right for everything else.
COLD_COMPILE_LIMITS = 2
# For the proof, and so many steps beyond it: tracing a few steps takes seconds, while a profiler that hangs never ends.
PROOF_S, PROOF_STEPS = 60.0, 10
COOLING_LOOK_S = 0.5  # between two looks at a device that cools down


class NoValidSamples(Exception):
    """Every sampling had to be discarded, for what `flag` says."""

    def __init__(self, flag: Flag) -> None:
        super().__init__(flag.detail)
        self.flag = flag


@dataclass(frozen=True)
class Target:
    """What jobs can be measured on: a workload as an interpreter sees it."""

    workload: WorkloadChoice
    python: str


@contextmanager
def local_executor(
    targets: Mapping[str, Target], device: str, protocol: Protocol, on_phase: OnPhase
) -> Iterator[LocalExecutor]:
    """An executor for jobs of `targets`, by name; all its processes and files are gone afterwards."""
    with ExitStack() as stack:
        pools = {
            name: stack.enter_context(WorkerPool(target.workload, device, protocol, target.python, on_phase))
            for name, target in targets.items()
        }
        yield LocalExecutor(next(iter(pools.values())), {}, on_phase, pools)


class LocalExecutor:
    """The `Executor` of this machine: each job has a fresh process.

    `pool` is where processes come from for jobs that name no target in `targets`. `defaults` give the
    reference. `on_phase` is called with the name of what a process begins, such as "warm-up".
    """

    def __init__(
        self,
        pool: WorkerPool,
        defaults: Mapping[str, Value],
        on_phase: OnPhase,
        targets: Mapping[str, WorkerPool] | None = None,
    ) -> None:
        self.pool, self.defaults, self.on_phase = pool, defaults, on_phase
        self.targets = {"": pool, **(targets or {})}
        self._shareable = True  # whether the workload gives each job a model of its own, as far as is known
        self._proved: set[tuple[object, ...]] = set()  # what has run alone, or in a round

    @property
    def pools(self) -> list[WorkerPool]:
        """Each pool once."""
        return list(dict.fromkeys(self.targets.values()))

    @property
    def protocol(self) -> Protocol:
        """How to measure."""
        return self.pool.protocol

    # ----- before and after the jobs

    @property
    def notes(self) -> list[str]:
        """What the report should say of this machine and workload."""
        return list(dict.fromkeys(note for pool in self.pools for note in pool.notes))

    def describe(self, batch_size: int | None, target: str = "") -> ProbeResult:
        """The facts of workload, device and software; GpubenchError where one of them is missing."""
        described = self.targets[target].describe(batch_size)
        for pool in self.pools:  # all on one card, whichever would be free at another moment
            if pool.device == "auto":
                pool.device = self.targets[target].device
        return described

    def configure(self, protocol: Protocol, defaults: Mapping[str, Value]) -> None:
        """How to measure from now on, and the configuration whose outputs are the reference."""
        self.defaults = defaults
        for pool in self.pools:
            pool.protocol = protocol

    def begin(self, configurations: Iterable[Configuration]) -> None:
        """Starts the fork servers that `configurations` need, without waiting for them."""
        configurations = list(configurations)
        for pool in self.pools:
            pool.begin_servers(configurations)

    def prepare(self, configurations: Iterable[Configuration]) -> None:
        """Starts the fork servers that `configurations` need, and waits for them."""
        configurations = list(configurations)
        for pool in self.pools:
            pool.start_servers(configurations)

    def free_memory_bytes(self) -> float:
        """Bytes free on the device, less a margin; infinite where that cannot be read."""
        return self.pool.free_memory_bytes()

    def harness_seconds(self, measuring_s: float) -> dict[str, float]:
        """Where the seconds went: `measuring` is the jobs' own work, the rest of `total` the tool's."""
        spent: dict[str, float] = {}
        for pool in self.pools:
            for part, seconds in pool.spent.items():
                spent[part] = spent.get(part, 0.0) + seconds
        # What inductor asks its compiler once would otherwise be a part of the first row's compilation.
        measuring_s += spent.get("toolchain", 0.0)
        spent |= {"total": time.monotonic() - min(pool.since for pool in self.pools), "measuring": measuring_s}
        return {name: round(seconds, 3) for name, seconds in spent.items()}

    # ----- one job alone

    def run_alone(self, job: Job) -> Outcome:
        """`job` in a fresh process of its own: samples by the stopping rule, then memory, outputs and evidence."""
        results: dict[str, Outcome] = {}
        with self._slots([job], results) as slots:
            for slot in slots:
                # From now on: a server that had to be started again took its time before.
                slot.limit_s = self.limit_s(job)
                slot.deadline = time.monotonic() + slot.limit_s
                with self._monitor([slot]) as monitor, self._guard(slot, slots):
                    self._prepare(slot)
                    before = read_host([slot.worker.pid])
                    self._sample(slot, monitor, None)
                    host = host_use(before, read_host([slot.worker.pid]))
                    self._check(slot, every_batch=True)
                    slot.memory = self._ask(slot, MeasureMemory(slot.number), MemoryRead)
                    process_memory = monitor.device_process_memory_bytes()
                    utilization = monitor.window(slot.parts[0].started, slot.parts[0].ended)
                    self._collect_evidence(slot, whole=True)
                    slot.see_range(self._proof_limit_s(slot), self.on_phase)
                    results[job.id] = outcome_of(slot, host, utilization, process_memory, self.pool.busy_before)
                if slot.failure:
                    results[job.id] = slot.failure
        return results[job.id]

    def limit_s(self, job: Job) -> float:
        """Seconds that `job` may take alone."""
        cache = Path(self.targets[job.target].compile_cache(job.configuration))
        cold = compiles(job.configuration) and not any(cache.iterdir())
        return self.protocol.timeout_s * (COLD_COMPILE_LIMITS if cold else 1)

    # ----- several in turns

    def run_round(self, jobs: Sequence[Job], needed_bytes: int | None = None) -> dict[str, Outcome]:
        """All `jobs` at the same time, sampled in turns, in processes that only sides of `ab` share (`_may_share`)."""
        if needed_bytes is not None and needed_bytes > self.free_memory_bytes():
            return {job.id: self.run_alone(job) for job in jobs}
        results: dict[str, Outcome] = {}
        shareable = self._shareable
        with self._slots(jobs, results) as slots:
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
                        self._collect_evidence(slot, whole=_key(slot.job) not in self._proved)
                if not slot.lost:
                    results[slot.job.id] = slot.failure or outcome_of(slot, host, others, None, self.pool.busy_before)
        if shareable and not self._shareable:
            self.pool.notes.append(
                "The workload builds models that share modules, so each side has processes of its own: in one "
                "process, what is applied to one model would be applied to the other."
            )
            return self.run_round(jobs, needed_bytes)
        for job in jobs:
            if len(jobs) > 1 and job.id in results and results[job.id].status == "oom":
                # What does not fit beside others may well fit alone, and only that would be its own failure.
                apart = self.run_alone(job)
                flag = MEASURED_APART.flag("it did not fit into memory beside the others")
                results[job.id] = replace(apart, flags=(*apart.flags, flag))
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
    def _slots(self, jobs: Sequence[Job], failures: dict[str, Outcome]) -> Iterator[list[Slot]]:
        """A slot for each job that got a worker, in the order of `jobs`; every worker is dead afterwards."""
        slots: dict[str, Slot] = {}
        try:
            for members in self._by_process(jobs):
                self.on_phase("reference")
                for job in members:
                    self.targets[job.target].reference(job.configuration, self.defaults)
                self.on_phase("start")
                started, started_at, kills = time.monotonic(), now(), oom_kills()
                ids = [job.id for job in members]
                try:
                    worker = self.targets[members[0].target].worker(members[0].configuration)
                except (WorkerError, GpubenchError) as error:  # the latter: a server cannot start
                    reason = error.message if isinstance(error, GpubenchError) else error.reason
                    failures |= {job_id: Outcome("crashed", sentence(reason), started_at) for job_id in ids}
                    continue
                for number, job in enumerate(members):
                    others = [other for other in ids if other != job.id]
                    slots[job.id] = Slot(job, worker, number, started, started_at, kills, None, others)
            yield [slots[job.id] for job in jobs if job.id in slots]
        finally:
            for slot in slots.values():
                slot.worker.kill()  # it has nothing left to say; waiting would make Ctrl-C wait for a compilation

    def _by_process(self, jobs: Sequence[Job]) -> list[list[Job]]:
        """`jobs` in groups that have one process each."""
        groups: list[list[Job]] = []
        for job in jobs:
            if not (group := next((group for group in groups if self._may_share(group, job)), [])):
                groups.append(group)
            group.append(job)
        return groups

    def _may_share(self, group: Sequence[Job], job: Job) -> bool:
        """Whether `job` may live in the process of `group`: another target in exactly the same configuration.

        Whatever a configuration or the workload's own code sets for the whole process is then the same for all in it. A
        limit on memory holds for a process, so each job needs its own; dynamo's caches and its recompile limit are the
        process's too.
        """
        protocol, first = self.protocol, self.targets[group[0].target]
        return (
            protocol.pair == "process"
            and self._shareable
            and not protocol.max_memory_bytes
            and not compiles(job.configuration)
            and job.configuration == group[0].configuration
            and all(job.target != other.target for other in group)
            and self.targets[job.target].python == first.python
            and self.targets[job.target].settings == first.settings
        )

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
            limit_s = slot.limit_s or self.protocol.timeout_s
            slot.failure = failed(error, slot.started_at, limit_s, slot.worker.log_tail(), killed)
            if isinstance(error, WorkerError):
                for other in slots:
                    taken_down = other.worker is slot.worker or other.worker.is_lost()
                    other.lost = other.lost or (taken_down and other.failure is None)
        except NoValidSamples as error:
            reason = sentence(f"no valid samples: {error}")
            slot.failure = Outcome("failed", reason, slot.started_at, flags=(error.flag,))

    def _monitor(self, slots: Sequence[Slot]) -> Monitor:
        ours = frozenset(slot.worker.pid for slot in slots)
        return Monitor(slots[0].worker.pid, self.pool.monitored, hz=self.protocol.monitor_hz, ours=ours)

    def _ask(self, slot: Slot, request: WorkerRequest, reply: type[Reply]) -> Reply:
        return slot.worker.ask(request, reply, time.monotonic() + self._left_s(slot), self.on_phase)

    def _left_s(self, slot: Slot) -> float:
        """Seconds until an answer is due."""
        return self.protocol.timeout_s if slot.deadline is None else max(0.0, slot.deadline - time.monotonic())

    def _prepare(self, slot: Slot) -> None:
        pool, configuration = self.targets[slot.job.target], slot.job.configuration
        reference = pool.reference(configuration, self.defaults)
        request = Prepare(
            model=slot.number,
            choice=pool.choice,
            device=pool.device,
            configuration=configuration,
            protocol=self.protocol,
            tolerance=pool.tolerance_of(configuration),
            compile_cache=pool.compile_cache(configuration),
            reference_folder=reference.folder,
            reference_problem=reference.problem,
            facts=pool.facts,
            device_free_bytes=pool.device_free_bytes(),
        )
        slot.prepared = self._ask(slot, request, Prepared)

    def _sample(self, slot: Slot, monitor: Monitor, blocks: int | None) -> None:
        """Samples of a process that ran freely: what was taken while it was stopped or held back is taken again."""
        while True:
            sampled = self._ask(slot, TakeSamples(slot.number, blocks), SamplesTaken)
            if stopped := monitor.stopped_s(slot.worker.pid, sampled.started, sampled.ended):
                slot.stopped.append(stopped)
                if len(slot.stopped) > self.protocol.throttle_retries:
                    words = f"it was stopped in each of {len(slot.stopped)} samplings"
                    raise NoValidSamples(INTERRUPTED.flag(words))
                continue
            slow = monitor.slowdowns(sampled.started, sampled.ended)
            if isinstance(slow, Unavailable) or not slow:
                slot.parts.append(sampled)
                return
            slot.discarded.append(" and ".join(slow))
            if len(slot.discarded) > self.protocol.throttle_retries:
                words = f"{slot.discarded[-1]} in each of {len(slot.discarded)} samplings"
                raise NoValidSamples(THROTTLED.flag(words))
            self.on_phase("cooling down")
            deadline = time.monotonic() + self.protocol.cool_down_s
            while isinstance(slow := monitor.slowdowns_now(), list) and slow and time.monotonic() < deadline:
                time.sleep(COOLING_LOOK_S)

    def _check(self, slot: Slot, *, every_batch: bool) -> None:
        slot.last_quality = self._ask(slot, CheckLast(slot.number, every_batch), Checked).quality

    def _collect_evidence(self, slot: Slot, *, whole: bool) -> None:
        """The proof. It comes last and has a deadline of its own, so that losing it costs no sample."""
        limit_s = self._proof_limit_s(slot)
        try:
            slot.collected = slot.worker.ask(
                CollectEvidence(slot.number, whole), EvidenceCollected, time.monotonic() + limit_s, self.on_phase
            )
            self._proved.add(_key(slot.job))
        except (WorkerFailed, WorkerError) as error:
            if slot.worker.is_lost():  # with the server that forked it: it is asked again
                raise
            slot.proof_lost = lost_proof(error, limit_s, oom_kills() > slot.kills)

    def _proof_limit_s(self, slot: Slot) -> float:
        return min(PROOF_S + PROOF_STEPS * slot.step_s, self._left_s(slot))


def _key(job: Job) -> tuple[object, ...]:
    """What two jobs have in common that measure the same."""
    return job.target, *sorted(job.configuration.items())
