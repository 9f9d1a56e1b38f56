"""Rows whose processes differ so much that a useful effect could not be detected."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import msgspec

from gpubench.analysis.eligibility import MIN_ROUNDS
from gpubench.flags import NOISY, NOISY_EFFECT
from gpubench.report.model import Measurement, Report
from gpubench.stats.estimate import paired, two_way_error
from gpubench.stats.processes import latest_phase, log_times, of_phase, shared
from gpubench.stats.student import detectable
from gpubench.text import plural
from gpubench.units import BEYOND, format_percent


def with_noise_flags(report: Report) -> list[Measurement]:
    """Its rows, flagged `noisy` where their rounds cannot see an effect of 5 % against the baseline.

    The baseline itself is compared with the row that shares most rounds of its latest phase.
    """
    rows, baseline, flagged = report.measurements, report.baseline, []
    for row in rows:
        effect = detectable_effect(row, _rival(row, rows) if row is baseline else baseline, rows)
        flags = [flag for flag in row.flags if flag.kind != NOISY.name]
        if effect is not None and effect > NOISY_EFFECT and row.status == "ok":
            count = len(of_phase(row, latest_phase(row)))
            share = format_percent(effect, sign=False)
            least = f"only an effect of {share} or more" if effect < BEYOND else "no effect"
            flags.append(NOISY.flag(f"over {plural(count, 'process')} {least} can be told from chance"))
        flagged.append(msgspec.structs.replace(row, flags=flags))
    return flagged


def _rival(baseline: Measurement, rows: Sequence[Measurement]) -> Measurement | None:
    phase = latest_phase(baseline)
    others = [row for row in rows if row.id != baseline.id and not row.is_control and latest_phase(row) == phase]
    return max(others, key=lambda row: len(shared([row, baseline], phase)[0]), default=None)


def detectable_effect(row: Measurement, versus: Measurement | None, rows: Sequence[Measurement] = ()) -> float | None:
    """The smallest relative slowdown against `versus` that the row's rounds detect; None below 3 processes.

    From shared rounds where there are enough, else from the row's own processes against as many identical ones.
    """
    phase = latest_phase(row)
    own = list(log_times(row, phase).values())
    if len(own) < MIN_ROUNDS:
        return None
    if versus is not None and versus.id != row.id:
        estimate = paired(row, versus, phase, pooled=two_way_error(rows, phase))
        if estimate is not None and estimate.rounds >= MIN_ROUNDS:
            return estimate.detectable()
    return detectable(statistics.stdev(own) * math.sqrt(2 / len(own)), len(own) - 1)
