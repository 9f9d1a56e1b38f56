"""Does a configuration keep its speed when another one lives in its process? Why `toggles/sharing.py` has its rules.

    python benchmarks/sharing.py [WORKLOAD] [MODE] [ROUNDS]

The baseline and bf16 autocast, in processes of their own and in one, in alternating rounds.
"""

from __future__ import annotations

import math
import statistics
import sys
from typing import Literal

import msgspec

import gpubench.executor.local as bench_module
from gpubench.cli.planning import scope_of
from gpubench.executor.local import LocalExecutor
from gpubench.executor.worker_pool import WorkerPool
from gpubench.report.model import Protocol
from gpubench.search.space import Builder
from gpubench.worker.messages import WorkloadChoice

PROTOCOL = Protocol(warmup_min_iterations=10, warmup_min_s=0.5)


def main() -> None:
    """Prints each round, and the ratios of shared to alone with their standard errors."""
    workload = sys.argv[1] if len(sys.argv) > 1 else "vae"
    mode: Literal["inference", "training"] = "training" if sys.argv[2:3] == ["training"] else "inference"
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 8
    bench_module.groups = lambda asked: [list(range(len(asked)))]  # whatever the rules say
    choice = WorkloadChoice(reference=workload, size=None, parameters={}, mode=mode)
    with WorkerPool(choice, "auto", PROTOCOL) as pool:
        base = Builder(scope_of(pool.describe(None))).defaults
        asked = [("baseline", base), ("bf16-autocast", {**base, "precision": "bf16-autocast"})]
        bench = LocalExecutor(pool, base, lambda _: None)
        ratios: dict[str, list[float]] = {name: [] for name, _ in asked}
        for index in range(rounds):
            medians = {}
            for pair in ("round", "process") if index % 2 else ("process", "round"):
                pool.protocol = msgspec.structs.replace(PROTOCOL, pair=pair)
                results = bench.together(asked if index % 2 else asked[::-1])
                medians[pair] = {
                    name: statistics.median(one.sampled.samples_s) for name, one in results.items() if one.sampled
                }
            print(" | ".join(f"{pair}: {', '.join(f'{name} {value * 1e3:.1f} ms' for name, value in found.items())}"
                             for pair, found in medians.items()))  # fmt: skip
            for name, found in ratios.items():
                found.append(math.log(medians["process"][name] / medians["round"][name]))
    for name, found in ratios.items():
        error = statistics.stdev(found) / math.sqrt(len(found))
        print(f"{name}: in one process {statistics.fmean(found):+.1%} against alone (log-ratio, +- {error:.1%})")


if __name__ == "__main__":
    main()
