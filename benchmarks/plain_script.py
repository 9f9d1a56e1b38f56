"""Is the baseline as fast in gpubench as in a short script of one's own? And what does a profiled step before do to it?

    python benchmarks/plain_script.py [WORKLOAD] [ROUNDS]

In each round, in turns, in fresh processes: a script that knows torch alone, times its steps and prints the median; a
worker as gpubench has it; and a worker that profiles one step before it is timed, as gpubench did until it was noticed.
On a CPU all under the C library's own allocator, whose speed hangs on what has been allocated before.
"""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import time

from gpubench.api import StudyRequest
from gpubench.executor.worker_pool import WorkerPool
from gpubench.study.planning import builder_of
from gpubench.worker.messages import CollectEvidence, EvidenceCollected, Prepare, Prepared, SamplesTaken, TakeSamples

SCRIPT = """
import statistics, sys, time, torch
from gpubench.workloads.batch import make  # the model's code and inputs, and nothing else of gpubench
from gpubench.workloads.loader import load
workload = load(sys.argv[1], sys.argv[2]).workload
torch.manual_seed(0)
model = workload.build().eval()
batch = make(workload, workload.batch_size, 0)
times, end = [], time.perf_counter() + 4
with torch.no_grad():  # as gpubench has it; inference_mode allocates otherwise, which glibc's heap answers to
    while time.perf_counter() < end:
        start = time.perf_counter()
        output = model(batch[0])
        times.append(time.perf_counter() - start)
print(statistics.median(times[len(times) // 2:]))
"""
VARIANTS = ("script", "gpubench", "gpubench after a profiled step")


def script(workload: str, size: str) -> float:
    """Seconds of a step in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, workload, size], capture_output=True, text=True, check=True, timeout=300
    )
    return float(done.stdout)


def worker(pool: WorkerPool, configuration: dict[str, str | int], profiled: bool) -> float:
    """Seconds of a step in a worker."""
    process = pool.worker(configuration)
    try:
        request = Prepare(
            model=0, choice=pool.choice, device=pool.device, configuration=configuration,
            protocol=pool.protocol, tolerance=1.0, compile_cache=pool.compile_cache(configuration),
            reference_folder=pool.reference(configuration, configuration).folder,
        )  # fmt: skip
        deadline = time.monotonic() + 300
        process.ask(request, Prepared, deadline)
        if profiled:
            process.ask(CollectEvidence(0), EvidenceCollected, deadline)
        return statistics.median(process.ask(TakeSamples(0), SamplesTaken, deadline).samples_s)
    finally:
        process.kill()


def main() -> None:
    """Prints each round, and each variant against the script."""
    workload = sys.argv[1] if len(sys.argv) > 1 else "resnet50"
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 8
    found: dict[str, list[float]] = {name: [] for name in VARIANTS}
    request = StudyRequest(workload=workload, mode="inference", device="cpu", final_rounds=0)
    with WorkerPool(request.choice(), request.device, request.protocol()) as pool:
        described = pool.describe(None)
        base = builder_of(request, described).defaults
        for index in range(rounds):
            for name in VARIANTS if index % 2 else VARIANTS[::-1]:
                if name == "script":
                    found[name].append(script(workload, described.workload.size))
                else:
                    found[name].append(worker(pool, base, profiled=name.endswith("profiled step")))
            print(", ".join(f"{name} {values[-1] * 1e3:.1f} ms" for name, values in found.items()), flush=True)
    for name in VARIANTS[1:]:
        ratios = [math.log(ours / plain) for ours, plain in zip(found[name], found["script"], strict=True)]
        error = statistics.stdev(ratios) / math.sqrt(len(ratios))
        print(f"{workload}, {name}: {statistics.fmean(ratios):+.1%} +- {error:.1%} against the script (log-ratio)")


if __name__ == "__main__":
    main()
