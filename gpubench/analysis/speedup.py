"""How much faster one row is than another, with an interval, always saying versus what and from which data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from gpubench.analysis.noise import Spread, pair_noise, process_values
from gpubench.analysis.statistics import t_quantile
from gpubench.results.schema import Measurement

Phase = Literal["explore", "confirm"]


@dataclass(frozen=True)
class Speedup:
    """Latency per item of `versus` / of the row; `low` and `high` bound it at 95 %."""

    value: float
    low: float
    high: float
    versus: str  # the other row's id
    phase: Phase  # which data it is from
    rounds: int  # processes of the row behind it


def shared_rounds(row: Measurement, versus: Measurement) -> list[float]:
    """log(versus / row) in seconds per item for each confirming round that has both."""
    theirs = {part.index: part.median_s for part in versus.rounds if part.phase == "confirm" and part.median_s > 0}
    scale = (row.items_per_step or 1) / (versus.items_per_step or 1)
    return [
        math.log(theirs[part.index] / part.median_s * scale)
        for part in row.rounds
        if part.phase == "confirm" and part.index in theirs and part.median_s > 0
    ]


def log_latency(row: Measurement, phase: Phase) -> float | None:
    """Mean over processes of log(seconds per item); None where `phase` has no figure."""
    values = process_values(row, phase)
    return math.fsum(math.log(value) for value in values) / len(values) if values else None


def speedup(row: Measurement, versus: Measurement, spread: Spread, phase: Phase | None = None) -> Speedup | None:
    """The speed-up of `row` over `versus`, or None where either has no figure.

    From fresh confirming processes alone where both have them (a figure from exploring overstates the winner, which was
    picked for it); paired by round where there are at least 2. `phase` asks for one kind of data only.
    """
    if versus.id == row.id:
        return None
    differences = shared_rounds(row, versus) if phase != "explore" else []
    if len(differences) >= 2:
        mean, half = paired(differences)
        return _from_logs(mean, half, versus, "confirm", len(differences))
    for kind in ("confirm", "explore") if phase is None else (phase,):
        mine, theirs = log_latency(row, kind), log_latency(versus, kind)
        if mine is not None and theirs is not None:
            half = pair_noise(row, versus, kind, spread)
            return _from_logs(theirs - mine, half, versus, kind, len(process_values(row, kind)))
    return None


def paired(differences: list[float]) -> tuple[float, float]:
    """Mean and 95 % half-width (Student's t) of at least 2 paired differences."""
    count = len(differences)
    mean = math.fsum(differences) / count
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in differences) / (count - 1))
    return mean, t_quantile(count - 1) * deviation / math.sqrt(count)


def _from_logs(mean: float, half: float, versus: Measurement, phase: Phase, rounds: int) -> Speedup:
    return Speedup(math.exp(mean), math.exp(mean - half), math.exp(mean + half), versus.id, phase, rounds)
