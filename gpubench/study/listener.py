"""Who is told how a run goes."""

from __future__ import annotations

from pathlib import Path

from gpubench.report.model import Measurement
from gpubench.search.space import Candidate


class Listener:
    """Is told how a run goes; says nothing itself. Subclass it and override what you want to hear.

    Calls come from the thread that measures, between the measured processes: what a method does is not timed, but the
    run waits for it. An exception ends the run.
    """

    def report_at(self, path: Path) -> None:
        """The report is saved at `path` (of `ab`: both, in that folder) after every process from now on."""

    def planned(self, plain: int, compiled: int) -> None:
        """So many more processes are due, as far as is known now, without and with compilation."""

    def started(self, number: int, planned: Candidate, note: str) -> None:
        """Process `number` begins; `note` says why a configuration is measured again, such as its round."""

    def phase(self, name: str) -> None:
        """What is done now: importing the workload's file, build, apply, warm-up, samples ...

        A phase that lasts is told again every 20 s.
        """

    def finished(self, row: Measurement) -> None:
        """A configuration has its row."""

    def note(self, text: str) -> None:
        """A sentence that the user should read."""
