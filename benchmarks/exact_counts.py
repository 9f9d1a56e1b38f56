"""Whether the counts of a step repeat exactly, which `check` relies on: every bundled workload, in fresh processes.

    python benchmarks/exact_counts.py [REPEATS [WORKLOAD...]]

Prints a line for each configuration. A count that differs between two of its processes is named, and the exit code
is 1.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
from collections import Counter
from multiprocessing.connection import Connection

import msgspec

from gpubench.report.model import StepCounts, Value
from gpubench.worker.server import import_torch
from gpubench.workloads.catalog import SUMMARIES
from gpubench.workloads.workload_facts import Mode

REPEATS = 20
STEPS = 4  # before the one that is profiled
CONFIGURATIONS: tuple[dict[str, Value], ...] = (
    {},
    {"precision": "bf16-autocast"},
    {"channels_last": "on"},
    {"precision": "bf16-autocast", "channels_last": "on", "compile": "default"},
)


def count(workload: str, mode: Mode, configuration: dict[str, Value], cache: str, answer: Connection) -> None:
    """Sends the counts of one step, prepared as a worker prepares it."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    import torch

    from gpubench.measure.trace import trace_step
    from gpubench.toggles.compilation.compile import COMPILE
    from gpubench.worker.counts import step_counts
    from gpubench.worker.messages import WorkloadChoice
    from gpubench.worker.prepare import apply_toggles, build, load_choice, make_batches
    from gpubench.worker.step import Stepper

    loaded, chosen = load_choice(WorkloadChoice(reference=workload, size="tiny", parameters={}, mode=mode))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base: dict[str, Value] = {"optimizer": "for-loop"} if mode == "training" else {}
    context = build(loaded, chosen, device, base | configuration, seed=0)
    apply_toggles(context, make_batches(loaded, context.batch_size, 2, seed=0))
    stepper = Stepper(context)
    for _ in range(STEPS):
        stepper.step()
    context.trace = trace_step(stepper.step, cuda=device.type == "cuda")
    compiled = COMPILE.evidence(context, configuration["compile"]) if "compile" in configuration else None
    answer.send_bytes(msgspec.json.encode(step_counts(context, compiled)))


def repeated(workload: str, mode: Mode, configuration: dict[str, Value], repeats: int) -> list[StepCounts]:
    """The counts of that many fresh processes, forked from this one, which has torch and never used it."""
    found = []
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(repeats):
            here, there = multiprocessing.Pipe(duplex=False)
            context = multiprocessing.get_context("fork")
            process = context.Process(target=count, args=(workload, mode, configuration, cache, there))
            process.start()
            there.close()
            found.append(msgspec.json.decode(here.recv_bytes(), type=StepCounts))
            process.join()
    return found


def main() -> int:
    """Counts, and prints a table."""
    repeats = int(sys.argv[1]) if sys.argv[1:] else REPEATS
    workloads = sys.argv[2:] or list(SUMMARIES)
    modes: tuple[Mode, ...] = ("inference", "training")
    import_torch()
    fields = [name for name in StepCounts.__struct_fields__ if name != "work"]
    print(f"| workload | mode | configuration | {' | '.join(fields)} | work | alike |")
    print(f"| {' | '.join(['---'] * (len(fields) + 5))} |")
    differing = 0
    for configuration in CONFIGURATIONS:
        for workload in workloads:
            for mode in modes:
                found = repeated(workload, mode, configuration, repeats)
                cells, unlike = [], []
                for name in [*fields, "work"]:
                    values = Counter(json.dumps(getattr(each, name)) for each in found)
                    cells.append(" or ".join(values).replace("null", "-").replace('"', ""))
                    unlike += [name] if len(values) > 1 else []
                words = ", ".join(map(str, configuration.values())) or "baseline"
                alike = f"{repeats} of {repeats}" if not unlike else f"not: {', '.join(unlike)}"
                print(f"| {workload} | {mode} | {words} | {' | '.join(cells)} | {alike} |", flush=True)
                differing += bool(unlike)
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
