"""The speedup of one row of a report over another, from the latest phase that both were measured in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from gpubench.report.model import Measurement, Report
from gpubench.stats.estimate import Estimate, paired, separate
from gpubench.stats.processes import PHASES, Phase, log_times, shared
from gpubench.stats.spread import Spreads, spreads


def spread(report: Report) -> Spreads:
    """How much identical processes of the report differ. Rows are minutes apart, so it includes the machine's drift."""
    return spreads([report], across_phases=True)


def speedup(
    row: Measurement,
    versus: Measurement,
    between: Spreads,
    rows: Sequence[Measurement] = (),
    phases: Sequence[Phase] = PHASES,
) -> Estimate | None:
    """The speedup of `row` over `versus`; None where either has no figure, and of a row over itself.

    The first of `phases` counts that has both: the exploring figure of a winner is too high, because it was selected
    by it. Paired by round where there are at least 2 rounds.
    """
    if versus.id == row.id:
        return None
    estimates = (paired_speedup(row, versus, phase, rows) for phase in phases)
    by_round = next((estimate for estimate in estimates if estimate), None)
    apart = (separate(row, versus, phase, between) for phase in phases)
    return by_round or next((estimate for estimate in apart if estimate), None)


def paired_speedup(row: Measurement, versus: Measurement, phase: Phase, rows: Sequence[Measurement]) -> Estimate | None:
    """As `paired`, with the A/A difference of those rounds as the bias, where one of the two rows has a control."""
    estimate = paired(row, versus, phase, rows=rows)
    if estimate is None:
        return None
    for control in rows:
        if not control.is_control or control.status != "ok" or control.id in (row.id, versus.id):
            continue
        for twin in (row, versus):
            same = paired(control, twin, phase) if twin.configuration == control.configuration else None
            if same is not None:
                return replace(estimate, bias=abs(same.log_ratio))
    return estimate


def score(row: Measurement, baseline: Measurement | None, phase: Phase) -> float | None:
    """log(seconds per item) for ranking, relative to the baseline's where they share rounds; None without a figure."""
    own = log_time(row, phase)
    anchor = log_time(baseline, phase) if baseline else None
    if baseline is None or anchor is None:
        return own
    mine, theirs = (list(times.values()) for times in shared([row, baseline], phase))
    return anchor + (math.fsum(mine) - math.fsum(theirs)) / len(mine) if mine else own


def log_time(row: Measurement, phase: Phase) -> float | None:
    """Mean of log(seconds per item) over the processes of `phase`; None without any."""
    values = log_times(row, phase).values()
    return math.fsum(values) / len(values) if values else None
