"""One figure for each process: the only place that extracts them from a row.

Figures are the logarithm of the seconds per item, since what is compared are ratios.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal

from gpubench.report.model import Measurement, Round

Phase = Literal["explore", "runoff", "final"]
PHASES: tuple[Phase, ...] = ("final", "runoff", "explore")  # latest first
Statistic = Literal["median", "p95"]  # of the samples of one process
Times = dict[tuple[Phase, int], float]  # by phase and round

ENOUGH = 3  # undisturbed rounds, from which on the disturbed ones are left out


def of_phase(row: Measurement, phase: Phase | None) -> list[Round]:
    """The rounds of one phase (None: of all) with a figure above 0; only undisturbed ones where there are enough.

    Disturbances (other processes, swapping) are observed from outside, not read from the figure, so leaving such
    rounds out does not select results.
    """
    usable = [part for part in row.rounds if phase in (None, part.phase) and part.median_s > 0]
    clean = [part for part in usable if not is_disturbed(part)]
    return clean if len(clean) >= ENOUGH else usable


def log_times(row: Measurement, phase: Phase | None, statistic: Statistic = "median") -> Times:
    """log(seconds per item) of each process that `of_phase` gives."""
    return _log_times(row, of_phase(row, phase), statistic)


def log_time(row: Measurement, phase: Phase) -> float | None:
    """Mean of log(seconds per item) over the processes of `phase`; None without any."""
    values = log_times(row, phase).values()
    return math.fsum(values) / len(values) if values else None


def shared(
    rows: Sequence[Measurement], phase: Phase, statistic: Statistic = "median", *, disturbed: bool = False
) -> list[Times]:
    """log(seconds per item) of each of `rows`, over the rounds of `phase` that all of them have.

    A round is disturbed for all rows or for none, so that they are compared over the same rounds.

    Args:
        disturbed: keep disturbed rounds even where there are enough others.
    """
    usable = [[part for part in row.rounds if part.phase == phase and part.median_s > 0] for row in rows]
    common = set.intersection(*({part.index for part in parts} for parts in usable)) if usable else set()
    clean = common - {part.index for parts in usable for part in parts if is_disturbed(part)}
    used = clean if len(clean) >= ENOUGH and not disturbed else common
    return [
        _log_times(row, [part for part in parts if part.index in used], statistic)
        for row, parts in zip(rows, usable, strict=True)
    ]


def _log_times(row: Measurement, parts: Sequence[Round], statistic: Statistic) -> Times:
    items = math.log(row.items_per_step or 1)
    if statistic == "median":
        return {(part.phase, part.index): math.log(part.median_s) - items for part in parts}
    used = [(part, values) for part, values in row.samples_by_round() if values and any(part is each for each in parts)]
    times = {(part.phase, part.index): p95(values) for part, values in used}
    return {key: math.log(value) - items for key, value in times.items() if value > 0}


def p95(samples: Sequence[float]) -> float:
    """The 95th percentile, interpolated linearly between samples."""
    return statistics.quantiles(samples, n=20, method="inclusive")[-1] if len(samples) > 1 else samples[0]


def is_disturbed(part: Round, but_for: Sequence[str] = ()) -> bool:
    """Whether a flag says that something else used the machine during that round; kinds in `but_for` do not count."""
    return any(flag.disturbs and flag.kind not in but_for for flag in part.flags)


def latest_phase(row: Measurement) -> Phase:
    """The row's latest phase that has rounds."""
    return next((phase for phase in PHASES if any(part.phase == phase for part in row.rounds)), "explore")


def latest(row: Measurement) -> tuple[list[float], list[float]]:
    """The samples of the latest phase in seconds, and the median of each of its processes."""
    used = {id(part) for part in of_phase(row, latest_phase(row))}
    parts = [(part, values) for part, values in row.samples_by_round() if id(part) in used or not used]
    return [value for _, values in parts for value in values], [part.median_s for part, _ in parts]


def flagged(row: Measurement, kind: str) -> bool:
    """Whether at least half of the processes behind the row's figures carry a flag of that kind."""
    rounds: Sequence[Round] = of_phase(row, latest_phase(row))
    if not rounds:
        return any(flag.kind == kind for flag in row.flags)
    return 2 * sum(any(flag.kind == kind for flag in part.flags) for part in rounds) >= len(rounds)
