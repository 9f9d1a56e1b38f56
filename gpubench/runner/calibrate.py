"""How noisy this machine is: identical configurations against each other, between processes and inside one."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Callable, Sequence

import msgspec

from gpubench.analysis.phases import DISTURBED
from gpubench.errors import GpubenchError
from gpubench.hardware.facts import Device, Environment
from gpubench.results.schema import Calibration, Configuration
from gpubench.runner.bench import Bench
from gpubench.runner.flags import kind
from gpubench.runner.laboratory import Laboratory
from gpubench.runner.process import ProcessResult, now

ROUNDS = 8  # of either kind: a spread from 7 degrees of freedom is within a third of the true one (chi-square, 68 %)
FEWEST = 4  # undisturbed rounds that are used alone: with fewer the spread may be off by more than half
PAIR = ("A", "B")
# Facts of the moment, or that a reboot may change; the rest of device and software makes up the fingerprint.
VOLATILE = ("unavailable", "variables", "power_limit_watts", "index")


def fingerprint(device: Device, environment: Environment) -> str:
    """The same for the same device with the same software: 16 hexadecimal digits."""
    facts = {**msgspec.to_builtins(device), **msgspec.to_builtins(environment)}
    known = {name: value for name, value in sorted(facts.items()) if name not in VOLATILE}
    return hashlib.sha256(msgspec.json.encode(known)).hexdigest()[:16]


def calibrate(
    laboratory: Laboratory,
    configuration: Configuration,
    mark: str,
    tell: Callable[[int, int, str], None],
    rounds: int = ROUNDS,
) -> Calibration:
    """A/A: the spread of log(A / B) for two copies of `configuration`, over `rounds` of either kind.

    `tell` is called with the round under way, how many there are, and its kind. GpubenchError where no process gave
    figures.
    """
    protocol = laboratory.protocol
    spreads: list[float | None] = []
    kept: list[tuple[int, int]] = []  # rounds used, and how many of them were disturbed
    try:
        for number, pair in enumerate(("round", "process")):
            laboratory.protocol = msgspec.structs.replace(protocol, pair=pair)
            bench = Bench(laboratory, configuration, lambda _: None)
            clean, disturbed = list[float](), list[float]()
            for index in range(rounds):
                kind = "two processes" if pair == "round" else "two copies in one process"
                tell(number * rounds + index + 1, 2 * rounds, kind)
                order = PAIR if index % 2 == 0 else PAIR[::-1]
                results = bench.together([(name, configuration) for name in order])
                pair_results = [results.get(name) for name in PAIR]
                if (ratio := log_ratio(pair_results)) is not None:
                    (disturbed if any(map(is_disturbed, pair_results)) else clean).append(ratio)
            used = clean if len(clean) >= FEWEST else clean + disturbed
            spreads.append(statistics.stdev(used) if len(used) >= 2 else None)
            kept.append((len(used), len(used) - len(clean)))
    finally:
        laboratory.protocol = protocol
    between, inside = spreads
    if between is None:
        raise GpubenchError("No pair of processes gave figures to calibrate by.", "Run `gpubench doctor`.")
    return Calibration(
        created_at=now(),
        fingerprint=mark,
        workload=laboratory.choice.reference,
        rounds=min(count for (count, _), found in zip(kept, spreads, strict=True) if found is not None),
        disturbed=max(count for _, count in kept),
        between_processes=between,
        inside_process=inside,
    )


def log_ratio(results: Sequence[ProcessResult | None]) -> float | None:
    """log(A / B) of two processes' medians; None where either gave no figures."""
    medians = [
        statistics.median(result.sampled.samples_s)
        for result in results
        if result is not None and result.status == "ok" and result.sampled is not None
    ]
    return math.log(medians[0] / medians[1]) if len(medians) == len(PAIR) and min(medians) > 0 else None


def is_disturbed(result: ProcessResult | None) -> bool:
    """Whether others used the machine while that process was sampled."""
    return result is not None and any(kind(flag) in DISTURBED for flag in result.flags)
