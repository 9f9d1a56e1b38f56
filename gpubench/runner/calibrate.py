"""How noisy this machine is: identical configurations against each other, between processes and inside one."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Callable, Sequence

import msgspec

from gpubench.errors import GpubenchError
from gpubench.hardware.facts import Device, Environment
from gpubench.results.schema import Calibration, Configuration
from gpubench.runner.bench import Bench
from gpubench.runner.laboratory import Laboratory
from gpubench.runner.process import ProcessResult, now

ROUNDS = 8  # of either kind: a spread from 7 degrees of freedom is within a third of the true one (chi-square, 68 %)
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
    try:
        for number, pair in enumerate(("round", "process")):
            laboratory.protocol = msgspec.structs.replace(protocol, pair=pair)
            bench = Bench(laboratory, configuration, lambda _: None)
            ratios = []
            for index in range(rounds):
                kind = "two processes" if pair == "round" else "two copies in one process"
                tell(number * rounds + index + 1, 2 * rounds, kind)
                order = PAIR if index % 2 == 0 else PAIR[::-1]
                results = bench.together([(name, configuration) for name in order])
                if ratio := log_ratio([results.get(name) for name in PAIR]):
                    ratios.append(ratio)
            spreads.append(statistics.stdev(ratios) if len(ratios) >= 2 else None)
    finally:
        laboratory.protocol = protocol
    between, inside = spreads
    if between is None:
        raise GpubenchError("No pair of processes gave figures to calibrate by.", "Run `gpubench doctor`.")
    return Calibration(
        created_at=now(),
        fingerprint=mark,
        workload=laboratory.choice.reference,
        rounds=rounds,
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
