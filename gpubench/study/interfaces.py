"""What a run needs of others: somebody to tell, something that measures, and the books. Tests script all three."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol as Interface

from gpubench.executor.outcome import Outcome
from gpubench.report.model import Configuration, Measurement
from gpubench.search.space import Candidate


class Listener(Interface):
    """Is told how the run goes; a progress bar, plain lines, or nothing."""

    def planned(self, plain: int, compiled: int) -> None:
        """So many more processes are due, as far as is known now, without and with compilation."""

    def started(self, number: int, planned: Candidate, note: str) -> None:
        """Process `number` begins."""

    def phase(self, name: str) -> None:
        """What the worker does now."""

    def finished(self, row: Measurement) -> None:
        """A configuration has its row."""

    def note(self, text: str) -> None:
        """Something the user should know."""


class Executor(Interface):
    """Measures configurations; `LocalExecutor` does so in fresh processes."""

    def alone(self, row_id: str, configuration: Configuration) -> Outcome:
        """One by itself."""

    def together(self, asked: Sequence[tuple[str, Configuration]], needs: int | None) -> dict[str, Outcome]:
        """One round of several in turns, which take `needs` bytes together."""


class Costs(Interface):
    """What the run keeps account of beside its rows; `WorkerPool` does so."""

    notes: list[str]

    def harness(self, measuring: float) -> dict[str, float]:
        """Where the seconds went."""

    def free_memory_bytes(self) -> float:
        """What is free where the configurations will live."""

    def start_servers(self, configurations: Iterable[Configuration]) -> None:
        """Makes ready what those configurations need."""
