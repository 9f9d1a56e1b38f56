"""How often do `ab` and `check` err? Collects A/A rounds, plants slowdowns in them, and counts verdicts.

    python benchmarks/calibration.py measure POOL.json WORKLOAD MINUTES [idle|load] [ALLOCATOR]
    python benchmarks/calibration.py table POOL.json...

`measure` repeats rounds as `gpubench ab` has them: two copies of the workload inside one fresh process, in turns;
under `load` beside a process that keeps one core busy. After each round three small fixed jobs say how fast the
machine was.

`table` cuts the rounds into comparisons that share none, and takes the verdicts of `gpubench.analysis.check` on
reports made of them. A slowdown is planted by multiplying the times of one side, which is what a slowdown does.
Beside it, on the same data, what others do: the medians of two runs with a fixed limit of 5 %, and pytest-
benchmark's `--benchmark-compare-fail=median:5%`, which holds the median over the iterations of one process against
another's.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from gpubench.analysis.check import Source, check
from gpubench.analysis.statistics import latency
from gpubench.analysis.verdicts import Limits
from gpubench.cli.planning import scope_of
from gpubench.cli.run import protocol_for
from gpubench.cli.run_ab import TURNS, WARMUP_MIN_S
from gpubench.matrix import Builder
from gpubench.results.schema import SCHEMA_VERSION, Measurement, Plan, Protocol, Report, Role, Round, Tool
from gpubench.runner.bench import Bench
from gpubench.runner.laboratory import Laboratory
from gpubench.worker.messages import Described, Prepare, Prepared, Sample, Sampled, WorkloadChoice

YARDSTICKS = ("product", "copy", "convolution")
YARDSTICK_BLOCKS = 2
BUSY = "while True: pass"
MOVED = 0.03  # of a small fixed job: the machine is not what it was
SLOWER = (1.0, 1.02, 1.05, 1.1)
PAIRED_ROUNDS = (5, 10)
RUN = 5  # processes of a run that `check` compares: gpubench compare-opts --rounds 5

Samples = Sequence[Sequence[float]]  # of each process
Rounds = Sequence[dict[str, Any]]
Judge = Callable[[float], str]


def measure(path: Path, workload: str, minutes: float, condition: str, allocator: str) -> None:
    """Adds rounds to the pool at `path` for so many minutes."""
    protocol = Protocol(turns=TURNS, warmup_min_s=WARMUP_MIN_S)
    choice = WorkloadChoice(reference=workload, size=None, parameters={}, mode="inference")
    load = subprocess.Popen([sys.executable, "-c", BUSY]) if condition == "load" else None
    try:
        with Laboratory(choice, "auto", protocol) as laboratory:
            described = laboratory.describe(None)
            laboratory.protocol = protocol_for(described.device.kind, protocol)
            configuration = Builder(scope_of(described)).defaults
            if described.device.kind == "cpu":
                configuration["allocator"] = allocator
            bench = Bench(laboratory, configuration, lambda _: None)
            yardstick = Yardstick(laboratory)
            pool: dict[str, Any] = {
                "workload": workload,
                "condition": condition if allocator == "system" else f"{condition}, allocator {allocator}",
                "described": msgspec.to_builtins(described),
                "configuration": configuration,
                "rounds": [],
            }
            began = time.monotonic()
            while time.monotonic() - began < 60 * minutes:
                index = len(pool["rounds"])
                order = ("a", "b") if index % 2 == 0 else ("b", "a")
                started = time.monotonic()
                results = bench.together([(side, configuration) for side in order])
                entry = {side: one.sampled.samples_s for side, one in results.items() if one.sampled}
                flags = sorted({flag.partition(":")[0] for one in results.values() for flag in one.flags})
                took = time.monotonic() - started
                pool["rounds"].append(
                    {"at": started - began, "took": took, "sides": entry, "flags": flags, "machine": yardstick.read()}
                )
                if index % 10 == 9:
                    path.write_text(json.dumps(pool))
                    print(f"{index + 1} rounds, {time.monotonic() - began:.0f} s", file=sys.stderr)
            path.write_text(json.dumps(pool))
    finally:
        if load:
            load.kill()
            load.wait()


class Yardstick:
    """A process that keeps the small jobs ready."""

    def __init__(self, laboratory: Laboratory) -> None:
        self.worker = laboratory.worker({})
        protocol = Protocol(warmup_min_iterations=5, warmup_min_s=0.2)
        file = Path(__file__).with_name("yardsticks.py")
        for number, name in enumerate(YARDSTICKS):
            choice = WorkloadChoice(reference=f"{file}:{name}", size=None, parameters={}, mode="inference")
            request = Prepare(
                resident=number, choice=choice, device=laboratory.device, configuration={}, protocol=protocol,
                tolerance=1.0, compile_cache=laboratory.compile_cache(name), reference_folder=None,
                reference_problem="not compared",
            )  # fmt: skip
            self.worker.ask(request, Prepared, time.monotonic() + 120)

    def read(self) -> dict[str, float]:
        """Seconds of each job."""
        found = {}
        for number, name in enumerate(YARDSTICKS):
            sampled = self.worker.ask(Sample(number, YARDSTICK_BLOCKS), Sampled, time.monotonic() + 120)
            found[name] = statistics.median(sampled.samples_s)
        return found


# ----- what the verdicts are


def report_of(pool: dict[str, Any], medians: Sequence[Sequence[float]], session: str | None) -> Report:
    """A report whose one row has those samples, one list a process."""
    described = msgspec.convert(pool["described"], Described)
    rounds = [
        Round(
            phase="duel" if session else "explore", index=index, position=index, started_at="",
            samples=len(part),
            iterations_per_sample=1, warmup_iterations=0, median_s=statistics.median(part),
        )
        for index, part in enumerate(medians, start=1)
    ]  # fmt: skip
    samples = [value for part in medians for value in part]
    figures = latency(samples, [part.median_s for part in rounds])
    row = Measurement(
        id="baseline", configuration=pool["configuration"], status="ok", reason="", roles=[Role(kind="baseline")],
        items_per_step=1, fps=1 / figures.median, latency_s=figures, samples_s=samples, rounds=rounds,
    )  # fmt: skip
    plan = Plan(command="ab", matrix="", strategy="each", baseline="baseline", objective="fps")
    return Report(
        schema_version=SCHEMA_VERSION, created_at="", finished_at="", tool=Tool(name="gpubench", version=""),
        device=described.device, environment=described.environment, workload=described.workload, protocol=Protocol(),
        plan=plan, measurements=[row], session=session,
    )  # fmt: skip


def verdict(pool: dict[str, Any], old: Samples, new: Samples, slower: float, limit: float, paired: bool) -> str:
    """The verdict on FPS of `new`, whose times are multiplied by `slower`."""
    times = [[value * slower for value in part] for part in new]
    session = "s" if paired else None
    reports = [report_of(pool, side, session) for side in (old, times)]
    found = check(Source("new", reports[1]), Source("old", reports[0]), Limits(slowdown=limit))
    return next(one.verdict for one in found.rows[0].findings if one.metric == "fps")


def fixed(old: Sequence[float], new: Sequence[float], slower: float) -> str:
    """What a limit of 5 % on two medians says."""
    return "regressed" if statistics.median(new) * slower > 1.05 * statistics.median(old) else "unchanged"


def shares(verdicts: Sequence[str]) -> str:
    """`regressed / inconclusive` in per cent."""
    count = max(len(verdicts), 1)
    called, open_ = verdicts.count("regressed"), verdicts.count("inconclusive")
    return f"{called / count:.1%} ({open_ / count:.0%} open)" if open_ else f"{called / count:.1%}"


def table(paths: Sequence[Path]) -> None:
    """Prints a line for each rule and pool."""
    print("| workload | condition | rule | comparisons | " + " | ".join(f"x{one:g}" for one in SLOWER) + " |")
    print("| --- | --- | --- | ---: |" + " ---: |" * len(SLOWER))
    for path in paths:
        pool = json.loads(path.read_text())
        rounds = [{**one["sides"], "machine": one["machine"]} for one in pool["rounds"] if len(one["sides"]) == 2]
        took = statistics.median(one["took"] for one in pool["rounds"])
        ratios = [math.log(statistics.median(one["b"]) / statistics.median(one["a"])) for one in rounds]
        print(
            f"<!-- {pool['workload']} {pool['condition']}: {len(rounds)} rounds of {took:.1f} s; log(b / a): mean "
            f"{statistics.fmean(ratios):+.2%}, spread {statistics.stdev(ratios):.2%} -->"
        )
        for rule, cases in rules(pool, rounds).items():
            found = [" | ".join(shares([judge(slower) for judge in cases]) for slower in SLOWER)]
            print(f"| {pool['workload']} | {pool['condition']} | {rule} | {len(cases)} | {found[0]} |")


def rules(pool: dict[str, Any], rounds: Rounds) -> dict[str, list[Judge]]:
    """For each rule its comparisons, as functions of the planted slowdown."""
    found: dict[str, list[Judge]] = {}
    for count in PAIRED_ROUNDS:
        groups = [rounds[start : start + count] for start in range(0, len(rounds) - count + 1, count)]
        for limit in (0.025, 0.05):
            found[f"ab, {count} rounds, limit {limit:.1%}"] = [
                partial(paired_verdict, pool, group, limit) for group in groups
            ]
    runs = [rounds[start : start + RUN] for start in range(0, len(rounds) - RUN + 1, RUN)]
    # Not apart: a baseline is older than the run before.
    half = len(runs) // 2
    apart = list(zip(runs[:half], runs[half : 2 * half], strict=True))
    for limit in (0.05, 0.1, 0.15):
        found[f"check, two runs of {RUN} processes, limit {limit:.0%}"] = [
            partial(separate_verdict, pool, old, new, limit) for old, new in apart
        ]
    for limit in (0.05, 0.1):
        found[f"the same, limit {limit:.0%}, undecided where the machine moved by {MOVED:.0%}"] = [
            partial(gated_verdict, pool, old, new, limit) for old, new in apart
        ]
    found[f"medians of two runs of {RUN} processes, 5 %"] = [partial(fixed_runs, old, new) for old, new in apart]
    single = list(zip(rounds[::2], rounds[1::2], strict=False))
    found["pytest-benchmark, median:5%"] = [partial(fixed_single, old, new) for old, new in single]
    return found


def paired_verdict(pool: dict[str, Any], group: Rounds, limit: float, slower: float) -> str:
    """Of `ab`."""
    return verdict(pool, [one["a"] for one in group], [one["b"] for one in group], slower, limit, paired=True)


def separate_verdict(pool: dict[str, Any], old: Rounds, new: Rounds, limit: float, slower: float) -> str:
    """Of `check`."""
    return verdict(pool, [one["a"] for one in old], [one["a"] for one in new], slower, limit, paired=False)


def gated_verdict(pool: dict[str, Any], old: Rounds, new: Rounds, limit: float, slower: float) -> str:
    """Of `check`, if it asked small fixed jobs that were measured beside whether the machine is the same."""
    for name in YARDSTICKS:
        levels = [statistics.fmean(math.log(one["machine"][name]) for one in side) for side in (old, new)]
        if abs(levels[1] - levels[0]) > math.log1p(MOVED):
            return "inconclusive"
    return separate_verdict(pool, old, new, limit, slower)


def fixed_runs(old: Rounds, new: Rounds, slower: float) -> str:
    """Medians of the processes' medians."""
    return fixed(*([statistics.median(one["a"]) for one in side] for side in (old, new)), slower)


def fixed_single(old: dict[str, Any], new: dict[str, Any], slower: float) -> str:
    """Medians of one process's iterations."""
    return fixed(old["a"], new["a"], slower)


if __name__ == "__main__":
    if sys.argv[1] == "measure":
        given = [*sys.argv[5:], *("idle", "system")[len(sys.argv[5:]) :]]
        measure(Path(sys.argv[2]), sys.argv[3], float(sys.argv[4]), *given)
    else:
        table([Path(name) for name in sys.argv[2:]])
