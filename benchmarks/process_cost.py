"""What a fresh worker process costs over the same work in a process that has torch already. Goal: <= 150 ms.

The same ten steps of a small model are run (a) in a freshly forked worker, from asking for it to its first answer,
and (b) in this process, which has torch loaded; interleaved, so that both see the same machine.

    python benchmarks/process_cost.py [ROUNDS]
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

from gpubench.executor.worker_pool import WorkerPool
from gpubench.report.model import Protocol
from gpubench.worker.messages import Prepare, Prepared, WorkloadChoice
from gpubench.worker.prepare import apply_toggles, build, load_choice, make_batches
from gpubench.worker.step import Stepper

CHOICE = WorkloadChoice(reference="resnet50", size="tiny", parameters={}, mode="inference")
PROTOCOL = Protocol(warmup_min_iterations=10, warmup_min_s=60.0, warmup_max_s=0.0, block_s=1e-9)


def in_worker(pool: WorkerPool, configuration: dict[str, str | int]) -> tuple[float, float]:
    """Seconds from asking for a process to its end, and the seconds of its own work (build to warm-up)."""
    started = time.perf_counter()
    worker = pool.worker(configuration)
    request = Prepare(
        model=0,
        choice=CHOICE,
        device="cpu",
        configuration=configuration,
        protocol=PROTOCOL,
        tolerance=1.0,
        compile_cache=pool.compile_cache(configuration),
        reference_folder=None,
    )
    phases = worker.ask(request, Prepared).phases_s
    worker.end()
    extra = phases.get("quality", 0.0)  # no part of the work compared here
    return time.perf_counter() - started - extra, sum(phases.values()) - extra


def in_process(configuration: dict[str, str | int]) -> float:
    """Seconds of the same work here."""
    started = time.perf_counter()
    loaded, mode = load_choice(CHOICE)
    context = build(loaded, mode, torch.device("cpu"), configuration, 0)
    apply_toggles(context, make_batches(loaded, context.batch_size, 2, 0))
    stepper = Stepper(context)
    for _ in range(11):
        stepper.step()
    return time.perf_counter() - started


def main() -> None:
    """Prints medians and the difference."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    configuration: dict[str, str | int] = {"precision": "fp32"}
    in_process(configuration)
    fresh, inside, here = [], [], []
    with WorkerPool(CHOICE, "cpu", PROTOCOL) as pool:
        pool.start_servers([configuration])
        for _ in range(rounds):
            total, own = in_worker(pool, configuration)
            fresh.append(total)
            inside.append(own)
            here.append(in_process(configuration))
    worker, process = statistics.median(fresh), statistics.median(here)
    print(
        f"fresh worker, start to end: {worker * 1e3:.1f} ms "
        f"(of which its own work {statistics.median(inside) * 1e3:.1f} ms)"
    )
    print(f"the same work here:         {process * 1e3:.1f} ms")
    print(f"a fresh process costs:      {(worker - process) * 1e3:.1f} ms more (median of {rounds}; goal <= 150 ms)")


if __name__ == "__main__":
    main()
