"""Rows whose processes differ so much that an effect worth having could not be seen."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import msgspec

from gpubench.analysis.eligibility import MIN_ROUNDS
from gpubench.analysis.noise import of_pair
from gpubench.analysis.phases import latest_phase, of_phase
from gpubench.analysis.speedup import shared_rounds
from gpubench.analysis.statistics import detectable
from gpubench.flags import NOISY, NOISY_EFFECT
from gpubench.report.model import Measurement


def rival(baseline: Measurement, rows: Sequence[Measurement]) -> Measurement | None:
    """The row that `baseline` last met in the most rounds: what they can tell is asked of both alike."""
    phase = latest_phase(baseline)
    others = [row for row in rows if row.id != baseline.id and not row.is_control]
    others = [row for row in others if latest_phase(row) == phase]
    return max(others, key=lambda row: len(shared_rounds(row, baseline, phase)), default=None)


def detectable_effect(row: Measurement, versus: Measurement | None, rows: Sequence[Measurement] = ()) -> float | None:
    """The smallest slowdown against `versus` that the row's rounds would find; None below 3 processes.

    From rounds that both share, whose differences cancel what the machine did meanwhile (`noise.of_pair`), else from
    the row's own.
    """
    phase = latest_phase(row)
    mine = of_phase(row, phase)
    if len(mine) < MIN_ROUNDS:
        return None
    noise = of_pair(row, versus, phase, rows) if versus is not None and versus.id != row.id else None
    if noise is not None and noise.rounds >= MIN_ROUNDS:
        return detectable(noise.pair_spread, noise.rounds, noise.freedom)
    return detectable(math.sqrt(2) * statistics.stdev(math.log(part.median_s) for part in mine), len(mine))


def with_noise_flags(row: Measurement, versus: Measurement | None, rows: Sequence[Measurement] = ()) -> Measurement:
    """`row`, flagged `noisy` where its rounds cannot see an effect of 5 %; see `detectable_effect`."""
    flags = [flag for flag in row.flags if flag.kind != NOISY.name]
    effect = detectable_effect(row, versus, rows)
    if effect is not None and effect > NOISY_EFFECT and row.status == "ok":
        count = len(of_phase(row, latest_phase(row)))
        flags.append(
            NOISY.flag(f"over {count} processes only an effect of {effect:.1%} or more can be told from chance")
        )
    return msgspec.structs.replace(row, flags=flags)
