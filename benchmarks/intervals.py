"""Do intervals hold what they promise, and what does pairing inside a process bring? From what `studies.py` measured.

    python benchmarks/intervals.py STUDIES.json...

* coverage: the processes cut into studies; the truth is the geometric mean of all. Goal: at least 90 % of the 95 %
  intervals hold it. Beside it the interval over the iterations of one process, as most tools have it.
* pairing: the spread of log(A / B) for two processes in one round, for two copies in one process, and for processes
  that were not interleaved; and how often an A/A comparison over 6 rounds is called different at 95 %.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from gpubench.stats.latency import latency
from gpubench.stats.student import detectable
from gpubench.study.launch import CPU_DRIFT

ROUNDS = 6  # of a final, by default
DRAWS = 1000


def show(path: Path) -> None:
    """Prints coverage, spreads and false alarms of one file."""
    data = json.loads(path.read_text())
    rounds = data["rounds"]
    print(f"{data['workload']} on {data['device']}, torch {data['torch']}")
    processes = [one["samples_s"] for one in data["processes"]]
    medians = [statistics.median(samples) for samples in processes]
    spread = statistics.stdev(map(math.log, medians))
    robust = stats.median_abs_deviation(list(map(math.log, medians)), scale="normal")
    truth = math.exp(statistics.fmean(map(math.log, medians)))
    print(f"  {len(processes)} processes: {truth * 1e3:.3f} ms, spread {spread:.2%} (robust {robust:.2%})")
    for size in (3, 5, 10):
        coverage(medians, truth, size)
    intervals = [stats.quantile_test(samples, p=0.5).confidence_interval(0.95) for samples in processes]
    held = sum(interval.low <= truth <= interval.high for interval in intervals)
    print(f"  coverage of intervals over one process's iterations: {held / len(processes):.0%}")
    pairing([ratio(one["round"], one["round"]) for one in rounds], "two processes in one round")
    pairing([ratio(one["process"], one["process"]) for one in rounds], "two copies in one process")
    pairing([ratio(one["round"], other["round"]) for one, other in itertools.pairwise(rounds)], "a round apart")


def coverage(medians: Sequence[float], truth: float, size: int) -> None:
    """How often the interval of `size` processes holds the truth.

    Of processes one after the other, by their own spread alone and with the machine's drift, as reports have it; and
    of processes that are spread over the whole time, as those of a long run in rounds are.
    """
    count = len(medians) // size
    together = [medians[start * size : (start + 1) * size] for start in range(count)]
    apart = [medians[start :: len(medians) // size][:size] for start in range(count)]
    print(
        f"  {count} studies of {size} processes: {share(together, truth, CPU_DRIFT):.0%} of the intervals hold "
        f"the truth; without the machine's drift {share(together, truth, 0.0):.0%}, and {share(apart, truth, 0.0):.0%} "
        "where the processes are spread over the whole time"
    )


def share(studies: Sequence[Sequence[float]], truth: float, drift: float) -> float:
    """The share of the studies' intervals that hold the truth."""
    found = [latency(study, study, drift) for study in studies]
    return sum((each.ci_low or math.inf) <= truth <= (each.ci_high or 0.0) for each in found) / len(found)


def ratio(first: Mapping[str, Any], second: Mapping[str, Any]) -> float | None:
    """log(A / B) of the medians; None where one is missing."""
    if "A" not in first or "B" not in second:
        return None
    return math.log(statistics.median(first["A"]["samples_s"]) / statistics.median(second["B"]["samples_s"]))


def pairing(found: Sequence[float | None], label: str) -> None:
    """The spread of A/A log-ratios, and the share of comparisons over ROUNDS of them that are called different."""
    ratios = [value for value in found if value is not None]
    chance, alarms = random.Random(0), 0
    for _ in range(DRAWS):
        alarms += stats.ttest_1samp(chance.sample(ratios, ROUNDS), 0).pvalue < 0.05
    spread = statistics.stdev(ratios)
    robust = stats.median_abs_deviation(ratios, scale="normal")
    visible = detectable(spread / math.sqrt(ROUNDS), ROUNDS - 1)
    print(
        f"  {label}, {len(ratios)} log-ratios: spread {spread:.2%} (robust {robust:.2%}), mean "
        f"{statistics.fmean(ratios):+.2%}, {ROUNDS} rounds detect {visible:.1%}, "
        f"A/A called different {alarms / DRAWS:.1%}"
    )


if __name__ == "__main__":
    for name in sys.argv[1:]:
        show(Path(name))
