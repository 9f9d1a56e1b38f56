"""Rows whose processes differ so much that an effect worth having could not be seen."""

from __future__ import annotations

import math
import statistics

import msgspec

from gpubench.analysis.eligibility import MIN_ROUNDS
from gpubench.analysis.noise import interleaved
from gpubench.analysis.phases import latest_phase, of_phase
from gpubench.analysis.statistics import detectable
from gpubench.results.schema import Measurement

NOISY = 0.05  # what the rounds must be able to see: below 5 % guides do not promise anything


def detectable_effect(row: Measurement, versus: Measurement | None) -> float | None:
    """The smallest slowdown against `versus` that the row's rounds would find; None below 3 processes.

    From rounds that both share, whose differences cancel what the machine did meanwhile, else from the row's own.
    """
    phase = latest_phase(row)
    mine = of_phase(row, phase)
    if len(mine) < MIN_ROUNDS:
        return None
    shared = interleaved([row, versus], phase) if versus is not None and versus.id != row.id else None
    if shared is not None and shared.rounds >= MIN_ROUNDS:
        return detectable(shared.pair_spread, shared.rounds)
    return detectable(math.sqrt(2) * statistics.stdev(math.log(part.median_s) for part in mine), len(mine))


def with_noise_flags(row: Measurement, versus: Measurement | None) -> Measurement:
    """`row`, flagged `noisy` where its rounds cannot see an effect of 5 %."""
    flags = [flag for flag in row.flags if flag.partition(":")[0] != "noisy"]
    effect = detectable_effect(row, versus)
    if effect is not None and effect > NOISY and row.status == "ok":
        count = len(of_phase(row, latest_phase(row)))
        flags.append(f"noisy: over {count} processes only an effect of {effect:.1%} or more can be told from chance")
    return msgspec.structs.replace(row, flags=flags)
