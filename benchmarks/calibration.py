"""How often do `ab` and `check` err? Collects A/A rounds, plants slowdowns in them, and counts verdicts.

    python benchmarks/calibration.py measure POOL.json WORKLOAD[/SIZE] MINUTES [idle|load] [ALLOCATOR]
    python benchmarks/calibration.py table POOL.json...

`measure` repeats rounds as `gpubench ab` has them: two copies of the workload inside one fresh process, in turns;
under `load` beside a process that keeps one core busy for a quarter of the time.

`table` cuts each pool's rounds into comparisons that share none, joins pools of one workload and condition, and takes
the verdicts of `gpubench.regression.comparison` on reports made of them. A slowdown is planted by multiplying the times
of one side, which is what a slowdown does. Beside it, on the same data, what others do: the medians of two runs with a
fixed limit of 5 %, and pytest-benchmark's `--benchmark-compare-fail=median:5%`, which holds the median over the
iterations of one process against another's.
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

from gpubench.api import StudyRequest
from gpubench.executor.executor import Job
from gpubench.executor.outcome import Outcome
from gpubench.executor.process_flags import merged
from gpubench.flags import Flag
from gpubench.regression.comparison import NamedReport, check
from gpubench.regression.verdicts import Limits, RowCheck
from gpubench.report.migrations import flag_object
from gpubench.report.model import SCHEMA_VERSION, Measurement, Plan, Protocol, Report, Role, Round, Tool
from gpubench.stats.latency import latency
from gpubench.study.launch import open_bench
from gpubench.study.launch_ab import TURNS, WARMUP_MIN_S
from gpubench.worker.messages import ProbeResult

# A neighbour that keeps one core busy a quarter of the time. One that does so all the time makes rounds of two spinning
# threads ten times as long, so that nobody would measure beside it.
BUSY = """
import time
while True:
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        pass
    time.sleep(1.5)
"""
SLOWER = (1.0, 1.02, 1.05, 1.1, 1.3)
FIRST_LOOK = 5  # rounds: `gpubench ab --rounds`, by default
ROW_S = 60.0  # of its --time-limit
AB_LIMIT = 0.025  # of `gpubench ab`, by default
SEPARATE_LIMITS = (0.05, 0.1, 0.3)  # the last: of `gpubench check` on a CPU, by default
DIGITS = 6
RUN = 5  # processes of a run that `check` compares: gpubench compare-opts --rounds 5

Parts = Sequence[dict[str, Any]]  # one process of a side each
Rounds = Sequence[dict[str, Any]]
Rule = Callable[[float], list[str]]


def measure(path: Path, workload: str, minutes: float, condition: str = "idle", allocator: str = "tuned") -> None:
    """Collects rounds into the pool at `path` for so many minutes."""
    protocol = Protocol(turns=TURNS, warmup_min_s=WARMUP_MIN_S)
    name, _, size = workload.partition("/")
    request = StudyRequest(workload=name, size=size or "auto", mode="inference")
    load = subprocess.Popen([sys.executable, "-c", BUSY]) if condition == "load" else None
    try:
        with open_bench(request, protocol=protocol, targets=("a", "b")) as bench:
            configuration = bench.builder.defaults
            if bench.described.device.kind == "cpu":
                configuration["allocator"] = allocator
            pool: dict[str, Any] = {
                "workload": workload,
                "condition": f"{condition}, allocator {allocator}",
                "described": msgspec.to_builtins(bench.described),
                "configuration": configuration,
                "rounds": [],
            }
            began = time.monotonic()
            while time.monotonic() - began < 60 * minutes:
                index = len(pool["rounds"])
                order = ("a", "b") if index % 2 == 0 else ("b", "a")
                started = time.monotonic()
                results = bench.executor.run_round([Job(side, configuration, side) for side in order])
                took = time.monotonic() - started
                sides = {side: part_of(one) for side, one in results.items() if one.sampled}
                pool["rounds"].append({"at": started - began, "took": took, "sides": sides})
                if index % 10 == 9:
                    path.write_text(json.dumps(pool))
                    print(f"{index + 1} rounds, {time.monotonic() - began:.0f} s", file=sys.stderr)
            path.write_text(json.dumps(pool))
    finally:
        if load:
            load.kill()
            load.wait()


def part_of(result: Outcome) -> dict[str, Any]:
    """What is kept of one side of a round."""
    samples = result.sampled.samples_s if result.sampled else []
    return {
        "samples_s": [float(f"{value:.{DIGITS}g}") for value in samples],
        "turns": list(result.turns),
        "flags": msgspec.to_builtins(result.flags),
    }


def flags_of(part: dict[str, Any]) -> list[Flag]:
    """The flags of one side of a round; in pools of before schema version 2 they are texts."""
    return msgspec.convert([flag_object(flag) for flag in part["flags"]], list[Flag])


# ----- what the verdicts are


def report_of(pool: dict[str, Any], parts: Parts, slower: float, session: str | None) -> Report:
    """A report whose one row has those processes, their times multiplied by `slower`."""
    # Pools name the message as it was called when they were measured.
    described = msgspec.convert(pool["described"] | {"type": "ProbeResult"}, ProbeResult)
    scaled = [[value * slower for value in part["samples_s"]] for part in parts]
    rounds = [
        Round(
            phase="final" if session else "explore", index=index, position=index, started_at="",
            samples=len(values), iterations_per_sample=1, warmup_iterations=0, median_s=statistics.median(values),
            turns=part["turns"] if session else [], flags=flags_of(part),
        )
        for index, (part, values) in enumerate(zip(parts, scaled, strict=True), start=1)
    ]  # fmt: skip
    samples = [value for part in scaled for value in part]
    figures = latency(samples, [part.median_s for part in rounds])
    row = Measurement(
        id="baseline", configuration=pool["configuration"], status="ok", reason="", roles=[Role(kind="baseline")],
        items_per_step=1, fps=1 / figures.median, latency_s=figures, samples_s=samples, rounds=rounds,
        flags=merged([part.flags for part in rounds]),
    )  # fmt: skip
    plan = Plan(command="ab", matrix="", strategy="each", baseline="baseline", objective="fps")
    return Report(
        schema_version=SCHEMA_VERSION, created_at="", finished_at="", tool=Tool(name="gpubench", version=""),
        device=described.device, environment=described.environment, workload=described.workload, protocol=Protocol(),
        plan=plan, measurements=[row], session=session,
    )  # fmt: skip


def judged(pool: dict[str, Any], old: Parts, new: Parts, slower: float, limit: float, session: str | None) -> RowCheck:
    """The verdicts on `new`, whose times are multiplied by `slower`: on its FPS and on its tail."""
    reports = [report_of(pool, old, 1.0, session), report_of(pool, new, slower, session)]
    return check(NamedReport("new", reports[1]), NamedReport("old", reports[0]), Limits(slowdown=limit)).rows[0]


def fixed(old: Sequence[float], new: Sequence[float], slower: float) -> str:
    """What a limit of 5 % on two medians says."""
    return "regressed" if statistics.median(new) * slower > 1.05 * statistics.median(old) else "unchanged"


def median(part: dict[str, Any]) -> float:
    """Of one process's samples."""
    return float(statistics.median(part["samples_s"]))


def shares(verdicts: Sequence[str], usual: int) -> str:
    """`regressed (inconclusive)` in per cent; of how many, where they are not as many as without a slowdown."""
    count = max(len(verdicts), 1)
    called, open_ = verdicts.count("regressed"), verdicts.count("inconclusive")
    notes = [f"{open_ / count:.0%} open"] if open_ else []
    notes += [f"of {len(verdicts)}"] if len(verdicts) != usual else []
    told = f" ({', '.join(notes)})" if notes else ""
    return f"{called / count:.1%}{told}"


def table(paths: Sequence[Path]) -> None:
    """Prints what the pools are, then a line for each rule, workload and condition, and one for all workloads of it."""
    pools = [json.loads(path.read_text()) for path in paths]
    print("| workload | condition | rounds | seconds a round | log(b / a): mean | spread | two runs: spread |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    found: dict[tuple[str, str], dict[str, list[Rule]]] = {}
    for pool in pools:
        rounds = usable(pool)
        ratios = [math.log(median(one["b"]) / median(one["a"])) for one in rounds]
        figures = f"{statistics.fmean(ratios):+.2%} | {statistics.stdev(ratios):.2%} | {run_spread(rounds):.1%}"
        print(f"| {pool['workload']} | {pool['condition']} | {len(rounds)} | {seconds(pool):.1f} | {figures} |")
        for workload in (pool["workload"], "all"):
            members = found.setdefault((workload, pool["condition"]), {})
            for name, rule in rules(pool, rounds).items():
                members.setdefault(name, []).append(rule)
    print("\n| workload | condition | rule | comparisons | " + " | ".join(f"x{one:g}" for one in SLOWER) + " |")
    print("| --- | --- | --- | ---: |" + " ---: |" * len(SLOWER))
    for (workload, condition), members in sorted(found.items(), key=lambda one: (one[0][1], one[0][0] != "all")):
        for name, of_pools in members.items():
            verdicts = [[one for rule in of_pools for one in rule(slower)] for slower in SLOWER]
            cells = " | ".join(shares(one, len(verdicts[0])) for one in verdicts)
            print(f"| {workload} | {condition} | {name} | {len(verdicts[0])} | {cells} |")


def seconds(pool: dict[str, Any]) -> float:
    """What a round takes."""
    return float(statistics.median(one["took"] for one in pool["rounds"]))


def usable(pool: dict[str, Any]) -> Rounds:
    """The rounds in which both sides gave figures."""
    return [one["sides"] for one in pool["rounds"] if len(one["sides"]) == 2]


def runs_of(rounds: Rounds) -> list[tuple[Rounds, Rounds]]:
    """Pairs of runs of RUN processes each, half the pool's time apart: a baseline is older than the run before."""
    runs = [rounds[start : start + RUN] for start in range(0, len(rounds) - RUN + 1, RUN)]
    half = len(runs) // 2
    return list(zip(runs[:half], runs[half : 2 * half], strict=True))


def run_spread(rounds: Rounds) -> float:
    """The standard deviation of the log-ratio of two runs, beyond what their own processes explain."""
    squares, within = [], []
    for pair in runs_of(rounds):
        logs = [[math.log(median(one["a"])) for one in side] for side in pair]
        squares.append((statistics.fmean(logs[1]) - statistics.fmean(logs[0])) ** 2)
        within.append(sum(statistics.variance(side) for side in logs) / RUN)
    return math.sqrt(max(statistics.fmean(squares) - statistics.fmean(within), 0.0)) if squares else math.nan


def rules(pool: dict[str, Any], rounds: Rounds) -> dict[str, Rule]:
    """Each rule as a function from the planted slowdown to the verdicts of its comparisons."""
    apart = runs_of(rounds)
    single = list(zip(rounds[::2], rounds[1::2], strict=False))
    found: dict[str, Rule] = {
        f"ab, as it is: {FIRST_LOOK} rounds, where open {ROW_S:g} s": partial(as_ab_does, pool, rounds),
        "ab, 10 rounds": partial(in_rounds, pool, rounds, 10),
    }
    for limit in SEPARATE_LIMITS:
        name = f"check, two runs of {RUN} processes, limit {limit:.0%}"
        found[name] = partial(separate_verdicts, pool, apart, limit)
    found[f"medians of two runs of {RUN} processes, 5 %"] = lambda slower: [
        fixed([median(one["a"]) for one in old], [median(one["a"]) for one in new], slower) for old, new in apart
    ]
    found["pytest-benchmark, median:5%"] = lambda slower: [
        fixed(old["a"]["samples_s"], new["a"]["samples_s"], slower) for old, new in single
    ]
    return found


def as_ab_does(pool: dict[str, Any], rounds: Rounds, slower: float) -> list[str]:
    """Comparisons one after the other, each of which takes as many rounds as `ab` would.

    It ends where not all that one might take are left: what is open there would not have been.
    """
    # Of the time of a row, `ab` spends about two rounds' on each side alone.
    most = max(math.floor(ROW_S / seconds(pool)) - 2, FIRST_LOOK)
    verdicts: list[str] = []
    start = 0
    while start + most <= len(rounds):
        taken = FIRST_LOOK
        row = paired(pool, rounds[start : start + taken], slower)
        if any((one.metric, one.verdict) == ("fps", "inconclusive") for one in row.findings):
            taken = most
            row = paired(pool, rounds[start : start + taken], slower)
        verdicts.append(row.verdict)
        start += taken
    return verdicts


def in_rounds(pool: dict[str, Any], rounds: Rounds, count: int, slower: float) -> list[str]:
    """Comparisons of so many rounds each."""
    starts = range(0, len(rounds) - count + 1, count)
    return [paired(pool, rounds[start : start + count], slower).verdict for start in starts]


def paired(pool: dict[str, Any], group: Rounds, slower: float) -> RowCheck:
    """Of `ab`."""
    return judged(pool, [one["a"] for one in group], [one["b"] for one in group], slower, AB_LIMIT, session="s")


def separate_verdicts(
    pool: dict[str, Any], pairs: Sequence[tuple[Rounds, Rounds]], limit: float, slower: float
) -> list[str]:
    """Of `check`, for each pair of runs."""
    return [
        judged(pool, [one["a"] for one in old], [one["a"] for one in new], slower, limit, session=None).verdict
        for old, new in pairs
    ]


if __name__ == "__main__":
    if sys.argv[1] == "measure":
        measure(Path(sys.argv[2]), sys.argv[3], float(sys.argv[4]), *sys.argv[5:])
    else:
        table([Path(name) for name in sys.argv[2:]])
