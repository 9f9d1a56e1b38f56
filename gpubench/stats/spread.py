"""How much identical processes differ, as a standard deviation of log-time (0.02 is about 2 %).

The samples of one process do not show it: fresh processes differ far more than the samples within one. So it is pooled
over configurations that were measured in several processes, and assumed where there are too few of them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gpubench.report.model import Measurement, Report
from gpubench.stats.processes import Statistic, log_times
from gpubench.stats.student import LARGE_FREEDOM
from gpubench.toggles.traits import noise_group

MIN_FREEDOM = 3  # with fewer repeats, Student's factor is above 4 and would tie everything with everything
# Assumed for the log-ratio of two identical processes, from 8 pairs over 12 rounds on a 2-core CPU with torch 2.13:
# of steady processes, and of those in a noise group (the default malloc of glibc, whose mmap threshold depends on the
# history of each process).
PAIR_SPREAD_STEADY = 0.019
PAIR_SPREAD_NOISY = 0.103


@dataclass(frozen=True)
class Spread:
    """Standard deviation of one process's log-time."""

    deviation: float
    freedom: int  # degrees of freedom of `deviation`; 0: nothing was repeated
    assumed: bool = False  # too few repeats to estimate it
    repeats: int = 0  # processes beyond the first of each configuration


@dataclass(frozen=True)
class Spreads:
    """The spread by noise group, since some settings make identical processes differ more than others."""

    by_group: dict[str, Spread]
    statistic: Statistic
    across_phases: bool
    on_cpu: bool

    def of(self, *rows: Measurement) -> Spread:
        """The spread of the least steady of `rows`."""
        groups = {noise_group(row.configuration) for row in rows}
        group = max((self._of_group(group) for group in groups), key=lambda spread: spread.deviation)
        own = _pooled(rows, self.statistic, self.across_phases)
        # Rows are not equally steady: those that proved less steady than their group keep their own spread.
        return own if own.freedom >= MIN_FREEDOM and own.deviation > group.deviation else group

    def _of_group(self, group: str) -> Spread:
        pooled = self.by_group.get(group, Spread(0.0, 0))
        if pooled.freedom >= MIN_FREEDOM:
            return pooled
        pair = PAIR_SPREAD_NOISY if self.on_cpu and group else PAIR_SPREAD_STEADY
        deviation = max(pair / math.sqrt(2), pooled.deviation)
        return Spread(deviation, LARGE_FREEDOM, assumed=True, repeats=pooled.repeats)


def spreads(reports: Sequence[Report], statistic: Statistic = "median", *, across_phases: bool) -> Spreads:
    """The spread of each noise group of some reports.

    Args:
        across_phases: take all processes of a configuration as repeats, whenever they were measured. Then the spread
            includes the drift of the machine during a run, as it must for rows that were measured at different
            times. Else only processes of one row and phase are repeats, and drift has to be added.
    """
    groups: dict[str, list[Measurement]] = defaultdict(list)
    for report in reports:
        for row in report.measurements:
            if not row.is_control:  # it shares its rounds with the baseline, so it is no independent repeat
                groups[noise_group(row.configuration)].append(row)
    by_group = {group: _pooled(rows, statistic, across_phases) for group, rows in groups.items()}
    return Spreads(by_group, statistic, across_phases, any(report.device.kind == "cpu" for report in reports))


def _pooled(rows: Iterable[Measurement], statistic: Statistic, across_phases: bool) -> Spread:
    repeats: dict[object, list[float]] = defaultdict(list)
    for index, row in enumerate(rows):
        if row.status != "ok" or not row.rounds:
            continue
        if across_phases:
            repeats[frozenset(row.configuration.items())].extend(log_times(row, None, statistic).values())
        else:
            for phase in {part.phase for part in row.rounds}:
                repeats[index, phase].extend(log_times(row, phase, statistic).values())
    squares, freedom = 0.0, 0
    for logs in repeats.values():
        if len(logs) > 1:
            mean = math.fsum(logs) / len(logs)
            squares += math.fsum((value - mean) ** 2 for value in logs)
            freedom += len(logs) - 1
    return Spread(math.sqrt(squares / freedom) if freedom else 0.0, freedom, repeats=freedom)
