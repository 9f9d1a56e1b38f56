"""What one process gave, and its status with the reason for it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from gpubench.executor.worker_process import WorkerError, WorkerFailed
from gpubench.flags import Flag
from gpubench.report.model import HostUse, Memory, Quality, StageUse, Status, Utilization
from gpubench.text import clause, sentence
from gpubench.worker.messages import EvidenceCollected, Prepared, RangeSeen, SamplesTaken

VMSTAT = Path("/proc/vmstat")


@dataclass(frozen=True)
class Outcome:
    """What one process gave. `prepared`, `sampled`, `memory` and `collected` are None from where it failed on.

    `proof_lost` says why `collected` is None although the rest is there.
    """

    status: Status
    reason: str
    started_at: str
    prepared: Prepared | None = None
    sampled: SamplesTaken | None = None
    last_quality: Quality | None = None  # of the last timed output
    memory: Memory | None = None
    stages: Sequence[StageUse] = ()
    collected: EvidenceCollected | None = None
    proof_lost: str = ""
    range: RangeSeen | None = None  # None: it was not asked for
    utilization: Utilization | None = None
    host: HostUse | None = None
    turns: Sequence[int] = ()
    shared_with: Sequence[str] = ()
    flags: tuple[Flag, ...] = ()
    log_tail: str = ""
    phases_s: Mapping[str, float] = field(default_factory=dict)

    @property
    def quality(self) -> Quality | None:
        """The quality before sampling, or that of the last timed output where only that is doubtful."""
        before, after = self.prepared.quality if self.prepared else None, self.last_quality
        if after is None or after.passed is True or (before and before.passed is False):
            return before
        # Later steps may be compared with nothing: a step that keeps state has none like them in the reference.
        return after if after.passed is False or after.reason else before


def verdict(result: Outcome) -> tuple[Status, str]:
    """The status of a process that ran to its end: wrong outputs first, then toggles without effect or proof."""
    quality = result.quality
    if quality is not None and quality.passed is False:
        stale = "" if result.prepared and result.prepared.quality.passed is False else "of the last timed step "
        return "wrong", f"the output {stale}differs from the fp32 reference: {quality.reason}"
    if result.proof_lost:
        return "unproven", f"its figures stand, but whether its settings took effect is unknown: {result.proof_lost}"
    evidence = result.collected.evidence if result.collected else []
    idle = [each for each in evidence if each.took_effect is False]
    if idle:
        return "not_effective", "; ".join(
            f"{each.toggle}={each.value} took no effect: {clause(each.detail)}" for each in idle
        )
    unread = [each for each in evidence if each.took_effect is None]
    if unread:
        words = "; ".join(f"{each.toggle}={each.value}: {clause(each.detail)}" for each in unread)
        return "unproven", f"whether it took effect could not be read: {words}"
    return "ok", ""


def failed(
    error: WorkerFailed | WorkerError, started_at: str, timeout_s: float, log_tail: str, kernel_killed: bool
) -> Outcome:
    """The result of a process that could not go on, or ended without an answer."""
    if isinstance(error, WorkerFailed):
        status: Status = "oom" if error.failed.kind == "oom" else "failed"
        reason = f"{clause(error.failed.reason)} (during {error.phase})"
    elif error.kind == "timeout":
        status = "timeout"
        reason = f"it did not finish within {timeout_s:g} s and was stopped during {error.phase} (see --timeout)"
    elif kernel_killed:
        status, reason = "oom", f"the kernel's out-of-memory killer ended it during {error.phase}"
    else:
        status, reason = "crashed", f"{error.reason} during {error.phase}"
    return Outcome(status, sentence(reason), started_at, log_tail=log_tail)


def lost_proof(error: WorkerFailed | WorkerError, limit_s: float, kernel_killed: bool) -> str:
    """Why the proof of a process that has given its samples was lost, as a clause."""
    if isinstance(error, WorkerFailed):
        return f"the profiled step failed: {error.failed.reason}"
    if error.kind == "timeout":
        return f"the profiled step did not end within {limit_s:.0f} s, so the process was stopped"
    if kernel_killed:
        return "the kernel's out-of-memory killer ended the process in the profiled step"
    return f"{error.reason} in the profiled step"


def oom_kills() -> int:
    """How many processes the kernel has killed because memory ran out, since boot; 0 where it does not tell."""
    try:
        line = re.search(r"^oom_kill (\d+)$", VMSTAT.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(line.group(1)) if line else 0


def now() -> str:
    """UTC now, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
