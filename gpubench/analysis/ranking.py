"""The valid rows of a report, best first, and those that only chance may have put behind the best."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace

from gpubench.analysis.effects import changed
from gpubench.analysis.eligibility import MIN_ROUNDS, exclusion
from gpubench.analysis.peak_memory import RESOLUTION_BYTES, peak_bytes
from gpubench.analysis.speedup import Speedups
from gpubench.report.model import Measurement, Objective, Report
from gpubench.stats.estimate import separate
from gpubench.stats.processes import Phase, log_time, shared
from gpubench.toggles.traits import compiles

NEARLY = 2  # times the noise: a final may show twice as much as was seen before


@dataclass(frozen=True)
class Ranking:
    """The valid rows, best first, and what they are ranked by."""

    speedups: Speedups
    objective: Objective
    rows: list[Measurement]
    phase: Phase
    explored: list[Measurement]  # the same by the figures of exploring
    excluded: dict[str, str]  # why a row is not valid, by id
    selected: list[Measurement]  # `rows` as they stood before the final

    @property
    def report(self) -> Report:
        """The report of the rows."""
        return self.speedups.report

    def contenders(self) -> list[Measurement]:
        """The rows that are tied with the best while exploring, best first: the candidates of a runoff."""
        return replace(self, rows=self.explored, phase="explore").tied()

    def tied(self) -> list[Measurement]:
        """The best row and those of which chance explains what they are worse."""
        return [row for row in self.rows if row is self.rows[0] or self._is_tied(row)]

    def nearly_tied(self) -> list[Measurement]:
        """The best row and those that more noise than was seen so far would tie with it."""
        return [row for row in self.rows if row is self.rows[0] or self._is_tied(row, NEARLY)]

    def simplicity(self, row: Measurement) -> tuple[int, bool, float, str]:
        """Lower is simpler: the fewest changed toggles, then no compilation to wait for, then the least memory."""
        peak = peak_bytes(row, self.report.device.kind)
        changes = len(changed(row, self.report.baseline))
        return changes, compiles(row.configuration), math.inf if peak is None else peak, row.id

    def _is_tied(self, row: Measurement, factor: float = 1.0) -> bool:
        best = self.rows[0]
        if self.objective != "memory":
            final = self.speedups.paired(best, row, "final")
            if final is not None and final.rounds >= MIN_ROUNDS:
                return final.low <= 1
        mine, least = (_score(self.report, each, self.objective, self.phase) for each in (row, best))
        return mine - least <= factor * self._threshold(row)

    def noise(self) -> float:
        """The threshold between the best row and the second, as a relative difference (0.02 is 2 %)."""
        threshold = self._threshold(self.rows[:2][-1])
        if self.objective == "memory":
            return threshold / max(peak_bytes(self.rows[0], self.report.device.kind) or 0, 1)
        return math.expm1(threshold)

    def _threshold(self, row: Measurement) -> float:
        """The difference to the best row that chance explains: in bytes for the objective memory, else in log-time."""
        if self.objective == "memory":
            return float(max(RESOLUTION_BYTES, _memory_repeat(self.report)))
        estimate = self.speedups.paired(row, self.rows[0], self.phase)
        if estimate is None or estimate.rounds < MIN_ROUNDS:  # the interval of fewer is too wide to be useful
            estimate = separate(row, self.rows[0], self.phase, self.speedups.spread)
        return estimate.half_width() if estimate else math.inf


def rank(report: Report, objective: Objective, max_memory_bytes: int | None = None) -> Ranking:
    """The ranking of the rows that may be recommended: by the runoff where it had the best row of exploring."""
    excluded, rows = {}, []
    for row in report.measurements:
        if row.is_control:
            continue
        why = exclusion(report, row, objective, max_memory_bytes)
        if why is None and objective == "memory" and peak_bytes(row, report.device.kind) is None:
            why = "its memory was not measured"
        if why is None:
            rows.append(row)
        else:
            excluded[row.id] = why
    explored = _ranked(report, rows, objective, "explore")
    in_runoff = _ranked(report, rows, objective, "runoff") if objective != "memory" else []
    # Else the runoff was run for another objective or memory limit, with other candidates.
    phase: Phase = "runoff" if in_runoff and (not explored or explored[0] in in_runoff) else "explore"
    ranked = in_runoff if phase == "runoff" else explored
    return Ranking(Speedups(report), objective, _by_final(report, ranked, objective), phase, explored, excluded, ranked)


def _by_final(report: Report, ranked: list[Measurement], objective: Objective) -> list[Measurement]:
    """`ranked` with the rows of the final first, by its data, where that measured the first of them again."""
    final = [
        row
        for row in _ranked(report, ranked, objective, "final")
        if sum(part.phase == "final" for part in row.rounds) >= MIN_ROUNDS
    ]
    if objective == "memory" or ranked[:1] != [row for row in final if row is ranked[0]]:
        return ranked
    return [*final, *(row for row in ranked if row not in final)]


def _ranked(report: Report, rows: list[Measurement], objective: Objective, phase: Phase) -> list[Measurement]:
    """Those of `rows` that were measured in `phase`, best first."""
    measured = [row for row in rows if log_time(row, phase) is not None]
    return sorted(measured, key=lambda row: (_score(report, row, objective, phase), row.id))


def _score(report: Report, row: Measurement, objective: Objective, phase: Phase) -> float:
    """Lower is better: bytes, or log(seconds per item) relative to the baseline's where both share rounds.

    By time per item for `latency` too: all its rows have steps over equally many items.
    """
    value = peak_bytes(row, report.device.kind) if objective == "memory" else log_time(row, phase)
    anchor = log_time(report.baseline, phase) if report.baseline else None
    if objective != "memory" and report.baseline is not None and anchor is not None:
        mine, theirs = (list(times.values()) for times in shared([row, report.baseline], phase))
        value = anchor + (math.fsum(mine) - math.fsum(theirs)) / len(mine) if mine else value
    return math.inf if value is None else value


def _memory_repeat(report: Report) -> int:
    """The largest difference between rows of equal configuration, in bytes."""
    peaks: dict[object, list[int]] = defaultdict(list)
    for row in report.measurements:
        peak = peak_bytes(row, report.device.kind) if row.status == "ok" else None
        if peak is not None:
            peaks[frozenset(row.configuration.items())].append(peak)
    return max((max(group) - min(group) for group in peaks.values()), default=0)
