"""When sampling ends: as soon as enough is known, or at the time limit. Pure functions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from gpubench.text import plural
from gpubench.units import format_percent

SETTLED_SAMPLES = 16  # halves of 8: the fewest whose quartiles are not their extremes
SETTLED_MEDIAN = 0.01  # halves' medians agree within 1 %
SETTLED_SPREAD = 0.5  # the smaller spread is at least half of the larger


@dataclass(frozen=True)
class StoppingRule:
    """Enough samples, over enough time, and a spread that is small or has settled; `max_s` ends it anyway."""

    min_samples: int
    min_s: float
    target_spread: float  # relative interquartile range
    max_s: float = math.inf

    def unmet(self, samples: Sequence[float], elapsed_s: float) -> str:
        """The first condition that is not met, as a clause; empty where enough is known."""
        if len(samples) < self.min_samples:
            return f"{len(samples)} of {plural(self.min_samples, 'sample')}"
        if elapsed_s < self.min_s:
            return f"{elapsed_s:.2f} of {self.min_s:g} s of sampling"
        if (spread := relative_spread(samples)) > self.target_spread and not has_settled(samples):
            return f"spread {format_percent(spread, sign=False)}, not below {self.target_spread:.1%}"
        return ""

    def out_of_time(self, samples: Sequence[float], elapsed_s: float) -> bool:
        """Whether sampling has to end now; never before there are two samples, since one has no spread."""
        return elapsed_s >= self.max_s and len(samples) >= 2


def has_settled(samples: Sequence[float]) -> bool:
    """Whether more samples would tell little more: the later half has the median and the spread of the earlier one."""
    if len(samples) < SETTLED_SAMPLES:
        return False
    earlier, later = samples[: len(samples) // 2], samples[len(samples) // 2 :]
    middles = statistics.median(earlier), statistics.median(later)
    spreads = relative_spread(earlier), relative_spread(later)
    same_median = abs(middles[0] - middles[1]) <= SETTLED_MEDIAN * max(middles)
    return same_median and abs(spreads[0] - spreads[1]) <= SETTLED_SPREAD * max(spreads)


def relative_spread(samples: Sequence[float]) -> float:
    """The interquartile range over the median of `samples`, without unit."""
    if len(samples) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return (high - low) / middle if middle > 0 else 0.0
