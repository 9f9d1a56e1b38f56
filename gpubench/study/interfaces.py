"""Who is told how a run goes."""

from __future__ import annotations

from typing import Protocol as Interface

from gpubench.report.model import Measurement
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
