"""What a study asks of whatever runs its processes: jobs to measure, and what they need. No process is named here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol as Interface

from gpubench.executor.outcome import Outcome
from gpubench.report.model import Configuration, Protocol, Value
from gpubench.worker.messages import ProbeResult


@dataclass(frozen=True)
class Job:
    """One configuration to measure."""

    id: str  # unique within its round
    configuration: Configuration
    target: str = ""  # a workload and interpreter, by a name that the executor knows; empty: its only one


class Executor(Interface):
    """Measures jobs. A process that fails, hangs or dies is the `Outcome` of its job, never an exception."""

    @property
    def protocol(self) -> Protocol:
        """How jobs are measured."""

    @property
    def notes(self) -> Sequence[str]:
        """Sentences that belong into the report, such as why a workload's module cannot be imported once for all."""

    def describe(self, batch_size: int | None, target: str = "") -> ProbeResult:
        """The facts of workload, device and software; GpubenchError where one of them is missing."""

    def configure(self, protocol: Protocol, defaults: Mapping[str, Value]) -> None:
        """How to measure from now on, and the configuration whose outputs are the reference."""

    def begin(self, configurations: Iterable[Configuration]) -> None:
        """Starts what `configurations` need, without waiting for it."""

    def prepare(self, configurations: Iterable[Configuration]) -> None:
        """Starts what `configurations` need, and waits until it is ready."""

    def run_alone(self, job: Job) -> Outcome:
        """`job` with nothing beside it: samples, memory, outputs and evidence."""

    def run_round(self, jobs: Sequence[Job], needed_bytes: int | None = None) -> dict[str, Outcome]:
        """One round: all `jobs` at the same time, sampled in turns; outcomes by the ids of the jobs.

        `needed_bytes`: the memory that all of them take together, where known. Where less is free, they run one after
        the other. A job that another one took down with it has no outcome.
        """

    def free_memory_bytes(self) -> float:
        """Bytes that jobs can have; infinite where that cannot be read."""

    def harness_seconds(self, measuring_s: float) -> dict[str, float]:
        """Where the seconds since the start went; `measuring_s` of them were the jobs' own work."""
