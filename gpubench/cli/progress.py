"""Progress on standard error: a bar on a terminal, plain lines elsewhere, nothing if quiet."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from gpubench.report.model import Measurement
from gpubench.search.space import Candidate
from gpubench.study.listener import Listener
from gpubench.text import printable
from gpubench.toggles.traits import compiles
from gpubench.units import format_duration, significant

COMPILED_COST = 6.0  # a compiled row versus a plain one, until the first has ended; seen: 25 to 60 s versus 3 to 20 s
LASTS_S = 5.0  # less is no reason for a line


class Remaining:
    """Estimates the seconds left from how long processes with and without compilation took so far."""

    def __init__(self) -> None:
        self.taken: dict[bool, list[float]] = {False: [], True: []}
        self.left: dict[bool, int] = {False: 0, True: 0}
        self.since, self.kind = 0.0, False

    def begin(self, compiled: bool) -> None:
        """A process begins, and the one before it has ended."""
        if self.since:
            self.taken[self.kind].append(time.monotonic() - self.since)
            self.left[self.kind] = max(0, self.left[self.kind] - 1)
        self.since, self.kind = time.monotonic(), compiled

    def estimate(self) -> float | None:
        """Seconds until the end; None before the first process has ended."""
        mean = {kind: sum(times) / len(times) for kind, times in self.taken.items() if times}
        if not mean:
            return None
        plain = mean[False] if False in mean else mean[True] / COMPILED_COST
        compiled = mean.get(True, plain * COMPILED_COST)
        return self.left[False] * plain + self.left[True] * compiled


def outcome(row: Measurement) -> str:
    """One row in a few words."""
    if row.status == "ok" and row.fps is not None and row.latency_s is not None:
        return f"{significant(row.fps)} items/s, {format_duration(row.latency_s.median)}"
    return f"{row.status}: {row.reason}"


class Quiet(Listener):
    """Says nothing; knows where the report is."""

    path: Path | None = None

    def report_at(self, path: Path) -> None:
        """Keeps it."""
        self.path = path


class Lines(Quiet):
    """A line for each process that begins and each configuration that is done."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.total = self.number = 0
        self.doing, self.since = "", 0.0  # the phase, and since when

    def _print(self, text: str) -> None:
        self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def planned(self, plain: int, compiled: int) -> None:
        """Keeps the number of processes."""
        self.total = self.number + plain + compiled

    def started(self, number: int, planned: Candidate, note: str) -> None:
        """Prints which configuration begins."""
        self.number = number
        self._print(f"[{number}/{max(self.total, number)}] {planned.id}{f' ({note})' if note else ''}")

    def phase(self, name: str) -> None:
        """Prints it where it is told again because it lasts."""
        if name != self.doing:
            self.doing, self.since = name, time.monotonic()
        elif (lasted := time.monotonic() - self.since) >= LASTS_S:
            self._print(f"    still {name}, for {format_duration(lasted)}")

    def finished(self, row: Measurement) -> None:
        """Prints its result."""
        self.doing = ""
        self._print(f"    {outcome(row)}" if row.status != "skipped" else f"skipped: {row.reason}")

    def note(self, text: str) -> None:
        """Prints it."""
        self._print(text)


class Bar(Quiet):
    """A bar with the current configuration, its phase, and elapsed and estimated time."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.remaining = Remaining()
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", table_column=None),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
        )
        self.task = self.progress.add_task("starting", total=None, left="")
        self.number = 0
        self.name = ""

    def planned(self, plain: int, compiled: int) -> None:
        """Sets the bar's length."""
        self.remaining.left = {False: plain, True: compiled}
        self.progress.update(self.task, total=self.number + plain + compiled)

    def started(self, number: int, planned: Candidate, note: str) -> None:
        """Shows which configuration begins."""
        self.remaining.begin(compiles(planned.configuration) and not note)
        self.number = number
        self.name = f"{planned.id}{f' ({note})' if note else ''}"
        left = self.remaining.estimate()
        self.progress.update(
            self.task,
            completed=number - 1,
            description=escape(printable(self.name)),
            left="" if left is None else f"about {format_duration(left)} left",
        )

    def phase(self, name: str) -> None:
        """Shows what the worker does now."""
        self.progress.update(self.task, description=escape(printable(f"{self.name}: {name}" if self.name else name)))

    def finished(self, row: Measurement) -> None:
        """Prints a line above the bar for a row that failed."""
        if row.status not in ("ok", "skipped"):
            self.note(f"{row.id}: {outcome(row)}")

    def note(self, text: str) -> None:
        """Prints a line above the bar."""
        self.console.print(printable(text), markup=False, highlight=False)


@contextlib.contextmanager
def listener(quiet: bool) -> Iterator[Quiet]:
    """The listener that suits standard error, shown until the block ends."""
    console = Console(stderr=True)
    if quiet:
        yield Quiet()
    elif console.is_terminal:
        bar = Bar(console)
        with bar.progress:
            yield bar
    else:
        yield Lines(console)
