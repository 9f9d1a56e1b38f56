"""What makes identical processes differ: the spread of log(latency) between fresh processes, cause by cause.

Each variant changes one thing about how a process is started; the variants are interleaved in rounds, in random order,
so that what the machine does meanwhile falls on all of them alike.

    python benchmarks/noise_sources.py [WORKLOAD] [PROCESSES]
"""

from __future__ import annotations

import ctypes
import math
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from scipy.stats import median_abs_deviation

from gpubench.executor.fork_server import ForkServer
from gpubench.executor.worker_pool import environment_of
from gpubench.report.model import Protocol
from gpubench.worker.messages import Describe, Prepare, Prepared, ProbeResult, SamplesTaken, TakeSamples, WorkloadChoice

ADDR_NO_RANDOMIZE = 0x0040000  # personality(2)
TUNED = environment_of({"allocator": "tuned"})
HUGE = environment_of({"allocator": "tuned-huge-pages"})
# name: environment, a new server for each process, address space layout randomized
VARIANTS: dict[str, tuple[dict[str, str], bool, bool]] = {
    "glibc's allocator": ({}, False, True),
    "tuned allocator": (TUNED, False, True),
    "tuned, a new server each": (TUNED, True, True),
    "tuned, a new server each, no ASLR": (TUNED, True, False),
    "tuned, threads bound to cores": ({**TUNED, "OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}, False, True),
    "tuned, huge pages": (HUGE, False, True),
    "tuned, huge pages, bound": ({**HUGE, "OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}, False, True),
    "tuned, active waiting": ({**TUNED, "OMP_WAIT_POLICY": "active"}, False, True),
}


def start(environment: dict[str, str], randomized: bool, workload: str, folder: Path) -> ForkServer:
    """A server that has torch loaded."""
    libc = ctypes.CDLL(None)
    before = libc.personality(0xFFFFFFFF)
    if not randomized:
        libc.personality(before | ADDR_NO_RANDOMIZE)
    server = ForkServer(environment, workload, folder)
    server.start()
    libc.personality(before)
    server.wait_ready()
    return server


def measure(server: ForkServer, choice: WorkloadChoice, protocol: Protocol, folder: Path) -> tuple[float, float]:
    """log(median seconds per step) of one fresh process, and the relative interquartile range inside it."""
    worker = server.fork()
    try:
        request = Prepare(
            model=0, choice=choice, device="cpu", configuration={}, protocol=protocol, tolerance=1.0,
            compile_cache=str(folder / "cache"), reference_folder=None, reference_problem="not compared",
        )  # fmt: skip
        worker.ask(request, Prepared, time.monotonic() + 120)
        sampled = worker.ask(TakeSamples(0), SamplesTaken, time.monotonic() + 120)
    finally:
        worker.kill()
    low, middle, high = statistics.quantiles(sampled.samples_s, n=4, method="inclusive")
    return math.log(middle), (high - low) / middle


def main() -> None:
    """Prints one line a variant."""
    workload = sys.argv[1] if len(sys.argv) > 1 else "resnet50"
    processes = int(sys.argv[2]) if len(sys.argv) > 2 else 12
    order = random.Random(0)
    logs: dict[str, list[float]] = {name: [] for name in VARIANTS}
    within: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "cache").mkdir()
        protocol = Protocol(warmup_min_iterations=10, warmup_min_s=0.3, max_sampling_s=0.6)
        servers = {name: start(env, aslr, workload, folder) for name, (env, new, aslr) in VARIANTS.items() if not new}
        first = next(iter(servers.values())).fork()
        described = first.ask(
            Describe(WorkloadChoice(reference=workload, size=None, parameters={}, mode=None), "cpu"), ProbeResult
        )
        first.kill()
        choice = WorkloadChoice(reference=workload, size=described.workload.size, parameters={}, mode="inference")
        for _ in range(processes):
            for name in order.sample(list(VARIANTS), len(VARIANTS)):
                environment, new, randomized = VARIANTS[name]
                server = start(environment, randomized, workload, folder) if new else servers[name]
                middle, inside = measure(server, choice, protocol, folder)
                logs[name].append(middle)
                within[name].append(inside)
                if new:
                    server.close()
        for server in servers.values():
            server.close()
    print(f"{workload}, {processes} fresh processes a variant")
    print("spread: of all; in rounds: without what moved all variants of a round alike; inside: of one process")
    print(f"{'':36} {'median':>9} {'spread':>8} {'in rounds':>9} {'robust':>8} {'inside':>8}")
    rounds = [statistics.fmean(values) for values in zip(*logs.values(), strict=True)]
    for name, values in logs.items():
        middle = math.exp(statistics.median(values)) * 1e3
        left = [value - of_round for value, of_round in zip(values, rounds, strict=True)]
        robust = median_abs_deviation(left, scale="normal")
        print(
            f"{name:36} {middle:6.2f} ms {statistics.stdev(values):8.2%} {statistics.stdev(left):9.2%} {robust:8.2%} "
            f"{statistics.median(within[name]):8.2%}"
        )


if __name__ == "__main__":
    main()
