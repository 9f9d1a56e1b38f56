"""Groups of reports about the same subject, with one recommendation each."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime

from gpubench.analysis.recommendation import Advice, recommend
from gpubench.report.model import Objective, Report


@dataclass(frozen=True, order=True)
class ReportGroup:
    """One device, one workload, size and mode. Two cards of one model are two devices: they differ by 8 %."""

    device: str
    uuid: str
    workload: str
    source_hash: str
    mode: str
    size: str
    parameters: tuple[tuple[str, str], ...]
    batch_size: int


@dataclass(frozen=True)
class Answer:
    """The recommendation for a group: `advice` is from `report`, which was read from `source`."""

    subject: ReportGroup
    source: str
    report: Report
    advice: Advice
    others: tuple[str, ...]  # further sources of the group, which were not used


def subject(report: Report) -> ReportGroup:
    """The group that the report belongs to."""
    workload, device = report.workload, report.device
    return ReportGroup(
        device=f"{device.kind} {device.slug}",
        uuid=device.uuid or "",
        workload=workload.reference,
        source_hash=workload.source_hash or "",
        mode=workload.mode,
        size=workload.size,
        parameters=tuple(sorted((name, repr(value)) for name, value in workload.parameters.items())),
        batch_size=workload.batch_size,
    )


def answers(
    sources: list[tuple[str, Report]], objective: Objective, max_memory_bytes: int | None = None
) -> list[Answer]:
    """One answer for each group, in order.

    Rows of different runs are never compared, since a device's speed shifts between runs. So the newest report of a
    group that recommends anything answers for it, finished ones first.
    """
    grouped: dict[ReportGroup, list[tuple[str, Report]]] = defaultdict(list)
    for source, report in sources:
        grouped[subject(report)].append((source, report))
    return [_answer(about, members, objective, max_memory_bytes) for about, members in sorted(grouped.items())]


def _answer(about: ReportGroup, members: list[tuple[str, Report]], objective: Objective, limit: int | None) -> Answer:

    def rank(member: tuple[str, Report]) -> tuple[bool, float]:
        return member[1].finished_at is not None, when(member[1])

    members = sorted(members, key=rank, reverse=True)
    advised = [(source, report, recommend(report, objective, limit)) for source, report in members]
    source, report, advice = next((each for each in advised if each[2].recommendation is not None), advised[0])
    return Answer(about, source, report, advice, tuple(other for other, _ in members if other != source))


def when(report: Report) -> float:
    """When the run began, in seconds since the epoch; time stamps may have any time zone."""
    return datetime.fromisoformat(report.created_at).timestamp()
