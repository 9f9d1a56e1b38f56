"""What a comparison may say of a row, and by which limits. `check` decides by them, everything else quotes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct, field, structs

from gpubench.report.model import Configuration

Verdict = Literal["improved", "regressed", "unchanged", "inconclusive", "incomparable"]
Metric = Literal["status", "quality", "graph_breaks", "peak_memory", "fps", "latency_p95", "compile_time"]
SEVERITY: tuple[Verdict, ...] = ("regressed", "inconclusive", "improved", "unchanged", "incomparable")  # worst first


# Between two runs of one machine, beyond what their processes explain: standard deviation of the log-ratio. CPU: seen
# on a shared 2-core virtual machine (benchmarks/calibration.md). GPU: assumed, not measured yet.
RUN_SPREAD = {"cpu": 0.12, "cuda": 0.01}
# The limit of the time per item, where nothing else is asked for: what can be told with that.
SLOWDOWN = {"cpu": 0.30, "cuda": 0.05}
PAIRED_SLOWDOWN = 0.025  # the same of rounds that held both sides, whatever the device


class Limits(Struct, frozen=True, kw_only=True):
    """By how much each metric may get worse, as a share: 0.05 is 5 %."""

    slowdown: float | None = None  # of the time per item; None: as `SLOWDOWN` has it for the device
    run_spread: float | None = None  # by how much two runs of the machine differ by themselves; None: `RUN_SPREAD`
    p95_growth: float = 0.25
    memory_growth: float = 0.02
    compile_growth: float = 0.50
    error_growth: float = 0.50  # of the outputs' relative error

    def of(self, kind: str, paired: bool) -> float:
        """The limit of the time per item on a device of that kind; of just that size it finds half at best."""
        if self.slowdown is not None:
            return self.slowdown
        return PAIRED_SLOWDOWN if paired else SLOWDOWN[kind]

    def between_runs(self, kind: str) -> float:
        """The standard deviation of the log-ratio of two runs on a device of that kind."""
        return RUN_SPREAD[kind] if self.run_spread is None else self.run_spread

    def settled(self, kind: str, paired: bool) -> Limits:
        """The same as it holds on a device of that kind; rounds that held both sides know no two runs."""
        run_spread = None if paired else self.between_runs(kind)
        return structs.replace(self, slowdown=self.of(kind, paired), run_spread=run_spread)


class Finding(Struct, frozen=True, kw_only=True):
    """One metric of one row. `change` is current / baseline - 1 of the metric itself (FPS: -0.05 is slower).

    `limit` and `detectable` of FPS are of the time per item (0.05: 5 % longer). `baseline` and `current` of FPS and
    latency are over the same processes as `change`, so that they may differ from a row's headline figures.
    """

    metric: Metric
    verdict: Verdict
    reason: str  # one sentence
    baseline: float | None = None
    current: float | None = None
    unit: str = ""
    change: float | None = None
    change_low: float | None = None  # interval of that `confidence`: 0.9 of two runs, 0.95 paired
    change_high: float | None = None
    confidence: float | None = None
    limit: float | None = None  # the worsening from which on it counts
    detectable: float | None = None  # the smallest one that is found with power 0.8, corrected for the rows
    p_value: float | None = None  # one-sided, Holm's correction for the number of rows
    rounds: int | None = None


class RowCheck(Struct, frozen=True, kw_only=True):
    """All findings of one row, the worst verdict first."""

    id: str
    configuration: Configuration
    verdict: Verdict
    findings: list[Finding]


class Check(Struct, frozen=True, kw_only=True):
    """One report against its baseline. `exit_code`: 0 fine, 1 regressed, 3 incomparable, 4 inconclusive."""

    current: str  # where it was read from
    baseline: str
    workload: str
    mode: str
    device: str
    paired: bool  # measured in the same interleaved rounds
    verdict: Verdict
    exit_code: int
    limits: Limits
    rows: list[RowCheck]
    differences: list[str] = field(default_factory=list)  # of machine, software and protocol
    allowed: list[str] = field(default_factory=list)  # the fields that --allow-different let pass
    notes: list[str] = field(default_factory=list)
    ab_command: str = ""  # measures both sides together, where two stored runs cannot tell; empty where they did so


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """The most severe of them; `incomparable` only where all are, or there is none."""
    return min(
        (verdict for verdict in verdicts if verdict != "incomparable"), key=SEVERITY.index, default="incomparable"
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: each p as it counts among all of them (Scand. J. Statist. 6, 1979)."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected
