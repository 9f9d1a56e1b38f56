"""A row's latency: from raw samples and the medians of its processes. Pure functions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from gpubench.errors import GpubenchError
from gpubench.report.model import Latency
from gpubench.stats.student import NORMAL_QUANTILE, quantile

MIN_PROCESSES = 3  # of an interval: with 2, Student's factor of 12.7 makes it too wide to be useful


def latency(samples_s: Sequence[float], medians_s: Sequence[float] | None = None, drift: float = 0.0) -> Latency:
    """The latency in seconds per step, from the samples of one or more processes.

    `median` is the geometric mean of the processes' medians. Its 95 % interval is Student's t over their logarithms:
    the process is the unit of replication, because the samples of one process say nothing about the next one. There is
    no interval below `MIN_PROCESSES`, or where a median is 0.

    Args:
        samples_s: all samples, in seconds; `p5` and `p95` are their percentiles.
        medians_s: the median of each process; None where the samples are of one process.
        drift: standard deviation of the machine's log-speed over minutes, added in quadrature. Processes that ran
            within seconds of each other share it, so their own spread cannot show it.

    Raises:
        GpubenchError: there are no samples, or one is negative or not finite.
    """
    if not samples_s:
        raise GpubenchError("There are no samples to take a latency from.", "Measure at least one step.")
    for sample in samples_s:
        if not (math.isfinite(sample) and sample >= 0):
            raise GpubenchError(f"A sample is {sample} s.", "Samples are finite numbers of seconds, at least 0.")
    import numpy as np

    p5, p95 = np.quantile(np.asarray(samples_s, dtype=float), (0.05, 0.95))
    medians = [statistics.median(samples_s)] if medians_s is None else list(medians_s)
    count, middle, low, high = len(medians), statistics.median(medians), None, None
    if count > 1 and min(medians) > 0:
        logs = [math.log(value) for value in medians]
        mean = math.fsum(logs) / count
        middle = math.exp(mean)
        if count >= MIN_PROCESSES:
            half = math.hypot(quantile(count - 1) * statistics.stdev(logs) / math.sqrt(count), NORMAL_QUANTILE * drift)
            low, high = math.exp(mean - half), math.exp(mean + half)
    return Latency(median=middle, p5=float(p5), p95=float(p95), ci_low=low, ci_high=high, processes=count)
