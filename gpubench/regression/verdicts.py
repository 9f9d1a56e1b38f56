"""The verdicts of a comparison and its limits. `check` decides by them; everything else quotes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct, field, structs

from gpubench import metrics
from gpubench.metrics import Metric
from gpubench.report.model import Configuration

Verdict = Literal["improved", "regressed", "unchanged", "inconclusive", "incomparable"]
SEVERITY: tuple[Verdict, ...] = ("regressed", "inconclusive", "improved", "unchanged", "incomparable")  # worst first


# Between two runs of one machine, beyond what their processes explain: standard deviation of the log-ratio. CPU: seen
# on a shared 2-core virtual machine (benchmarks/calibration.md). GPU: assumed, not measured yet.
RUN_SPREAD = {"cpu": 0.12, "cuda": 0.01}
# The default limit of the time per item: what can be told with that spread.
SLOWDOWN = {"cpu": 0.30, "cuda": 0.05}
PAIRED_SLOWDOWN = 0.025  # the same where both sides were measured in the same rounds, on any device


class Limits(Struct, frozen=True, kw_only=True):
    """By how much each metric may get worse, as a share: 0.05 is 5 %. `Metric.limit` names one of these fields."""

    slowdown: float | None = None  # of the time per item; None: `SLOWDOWN` of the device
    run_spread: float | None = None  # standard deviation between two runs of the same code; None: `RUN_SPREAD`
    p95_growth: float = 0.25
    memory_growth: float = 0.02
    compile_growth: float = 0.50
    error_growth: float = 0.50  # of the outputs' relative error

    def share(self, metric: Metric, kind: str, paired: bool = False) -> float:
        """By how much `metric` may get worse on a device of that kind. Of changes of just that size half are found."""
        if not isinstance(metric.limit, str):
            return metric.limit or 0.0
        share: float | None = getattr(self, metric.limit)
        if share is None:  # only the slowdown has defaults by device
            return PAIRED_SLOWDOWN if paired else SLOWDOWN[kind]
        return share

    def between_runs(self, kind: str) -> float:
        """Standard deviation of the log-ratio of two runs on a device of that kind."""
        return RUN_SPREAD[kind] if self.run_spread is None else self.run_spread

    def settled(self, kind: str, paired: bool) -> Limits:
        """The same with the defaults filled in; where both sides share their rounds there is no spread between runs."""
        run_spread = None if paired else self.between_runs(kind)
        return structs.replace(self, slowdown=self.share(metrics.get("fps"), kind, paired), run_spread=run_spread)


class Finding(Struct, frozen=True, kw_only=True):
    """The verdict on one metric of one row. `change` is current / baseline - 1 of the metric (FPS: -0.05 is slower).

    `limit` and `detectable` of FPS are of the time per item (0.05: 5 % longer). `baseline` and `current` of FPS and
    latency are of the same processes as `change`, so they may differ from the row's headline figures.
    """

    metric: str  # "status", or the name of a metric
    verdict: Verdict
    reason: str  # one sentence
    baseline: float | None = None
    current: float | None = None
    unit: str = ""
    change: float | None = None
    change_low: float | None = None  # interval of that `confidence`: 0.9 of two runs, 0.95 paired
    change_high: float | None = None
    confidence: float | None = None
    limit: float | None = None  # the smallest worsening that counts
    detectable: float | None = None  # the smallest worsening found with power 0.8, corrected for the number of rows
    p_value: float | None = None  # one-sided, Holm's correction for the number of rows
    rounds: int | None = None


class RowCheck(Struct, frozen=True, kw_only=True):
    """All findings of one row. `verdict` is the worst of those that decide."""

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
    allowed: list[str] = field(default_factory=list)  # the fields named by --allow-different that do differ
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
