"""How much faster one row is than another, with an interval, always saying versus what and from which data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gpubench.analysis.noise import Spread, of_pair, pair_noise, process_values
from gpubench.analysis.phases import PHASES, Phase, shared
from gpubench.report.model import Measurement


@dataclass(frozen=True)
class Speedup:
    """Latency per item of `versus` / of the row; `low` and `high` bound it at 95 %."""

    value: float
    low: float
    high: float
    versus: str  # the other row's id
    phase: Phase  # which data it is from
    rounds: int  # processes of the row behind it


def shared_rounds(row: Measurement, versus: Measurement, phase: Phase) -> list[float]:
    """log(versus / row) in seconds per item for each round of `phase` that has both."""
    mine, theirs = shared([row, versus], phase)
    scale = (row.items_per_step or 1) / (versus.items_per_step or 1)
    return [math.log(theirs[index] / value * scale) for index, value in mine.items()]


def log_latency(row: Measurement, phase: Phase) -> float | None:
    """Mean over processes of log(seconds per item); None where `phase` has no figure."""
    values = process_values(row, phase)
    return math.fsum(math.log(value) for value in values) / len(values) if values else None


def speedup(
    row: Measurement,
    versus: Measurement,
    spread: Spread,
    rows: Sequence[Measurement] = (),
    phases: Sequence[Phase] = PHASES,
) -> Speedup | None:
    """The speed-up of `row` over `versus`, or None where either has no figure.

    From the freshest of `phases` in which both were measured: a figure from exploring overstates the winner, which was
    picked for it. Paired by round where there are at least 2, with the noise of all `rows` of those rounds.
    """
    if versus.id == row.id:
        return None
    for phase in phases:
        differences = shared_rounds(row, versus, phase)
        if len(differences) >= 2:
            mean = math.fsum(differences) / len(differences)
            return _from_logs(mean, paired_half_width(row, versus, phase, rows), versus, phase, len(differences))
    for phase in phases:
        mine, theirs = log_latency(row, phase), log_latency(versus, phase)
        if mine is not None and theirs is not None:
            half = pair_noise(row, versus, phase, spread)
            return _from_logs(theirs - mine, half, versus, phase, len(process_values(row, phase)))
    return None


def paired_half_width(row: Measurement, versus: Measurement, phase: Phase, rows: Sequence[Measurement]) -> float:
    """95 % half-width of the mean log-ratio over shared rounds; infinite below 2 of them. See `noise.of_pair`.

    Never less than what two identical configurations came out apart in the same rounds, where those had a control.
    """
    noise = of_pair(row, versus, phase, rows)
    return max(noise.half_width, _control_shift(row, versus, phase, rows)) if noise else math.inf


def _control_shift(row: Measurement, versus: Measurement, phase: Phase, rows: Sequence[Measurement]) -> float:
    """|log(control / its twin)| over the rounds of `phase`, where one of the two rows is that twin; else 0."""
    for control in rows:
        if not control.is_control or control.status != "ok" or control.id in (row.id, versus.id):
            continue
        for twin in (row, versus):
            differences = shared_rounds(control, twin, phase) if twin.configuration == control.configuration else []
            if len(differences) >= 2:
                return abs(math.fsum(differences) / len(differences))
    return 0.0


def _from_logs(mean: float, half: float, versus: Measurement, phase: Phase, rounds: int) -> Speedup:
    high = math.exp(min(mean + half, 700.0))  # beyond this the exponential overflows
    return Speedup(math.exp(mean), math.exp(mean - half), high, versus.id, phase, rounds)
