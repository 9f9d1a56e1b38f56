"""Many fresh processes of one configuration, kept as raw samples: what the benchmark of intervals is worked out from.

    python benchmarks/studies.py OUTPUT.json [WORKLOAD] [PROCESSES] [ROUNDS]

First PROCESSES processes, one after the other, then ROUNDS rounds. Each round holds two processes of the baseline (A
and B, sampled in ABBA turns) and one process with two copies of it (also ABBA). All is identical work, so that every
difference is noise. Needs a machine that does nothing else.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from gpubench.api import StudyRequest
from gpubench.executor.executor import Job
from gpubench.executor.outcome import Outcome
from gpubench.report.model import Protocol
from gpubench.study.launch import open_bench

# Shorter than the default: what is asked here is how processes differ, and hundreds of them are to end in minutes.
PROTOCOL = Protocol(warmup_min_iterations=10, warmup_min_s=0.2, min_sampling_s=0.4, max_sampling_s=0.6)


def kept(results: dict[str, Outcome]) -> dict[str, Any]:
    """The samples and flags of those that gave some."""
    return {
        name: {
            "samples_s": result.sampled.samples_s,
            "turns": list(result.turns),
            "flags": msgspec.to_builtins(result.flags),
        }
        for name, result in results.items()
        if result.sampled
    }


def main() -> None:
    """Measures, and writes now and then."""
    output, workload = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "resnet50"
    processes, rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 300, int(sys.argv[4]) if len(sys.argv) > 4 else 60
    with open_bench(StudyRequest(workload=workload, mode="inference"), protocol=PROTOCOL, targets=("A", "B")) as bench:
        configuration = bench.builder.defaults
        protocol = bench.executor.protocol
        data: dict[str, Any] = {
            "workload": workload,
            "device": bench.described.device.name,
            "torch": bench.described.environment.torch,
            "processes": [],
            "rounds": [],
        }
        begun = time.monotonic()
        for index in range(processes):
            data["processes"] += kept({"A": bench.executor.run_alone(Job("A", configuration, "A"))}).values()
            if index % 20 == 19:
                print(f"process {index + 1} of {processes}, {time.monotonic() - begun:.0f} s", file=sys.stderr)
        for index in range(rounds):
            order = ("A", "B") if index % 2 == 0 else ("B", "A")
            entry: dict[str, Any] = {}
            for pair in ("round", "process"):
                bench.executor.configure(msgspec.structs.replace(protocol, pair=pair), configuration)
                entry[pair] = kept(bench.executor.run_round([Job(name, configuration, name) for name in order]))
            data["rounds"].append(entry)
            if index % 10 == 9:
                print(f"round {index + 1} of {rounds}, {time.monotonic() - begun:.0f} s", file=sys.stderr)
        output.write_text(json.dumps(data))


if __name__ == "__main__":
    main()
