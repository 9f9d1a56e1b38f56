"""Groups of reports about the same subject, with one recommendation each."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime

from gpubench.analysis.recommendation import Advice, recommend
from gpubench.report.model import Objective, Report


@dataclass(frozen=True)
class Answer:
    """The recommendation for a group of reports: `advice` is from `report`, which was read from `source`."""

    source: str
    report: Report
    advice: Advice
    others: tuple[str, ...]  # further sources of the group, which were not used


def answers(
    sources: list[tuple[str, Report]], objective: Objective, max_memory_bytes: int | None = None
) -> list[Answer]:
    """One answer for each workload, mode, size, set of parameters and batch size on each device, in order.

    Rows of different runs are never compared, since a device's speed shifts between runs. So the newest report of a
    group that recommends anything answers for it, finished ones first.
    """
    groups: dict[tuple[object, ...], list[tuple[str, Report]]] = defaultdict(list)
    for source, report in sorted(sources, key=lambda each: (each[1].finished_at is None, -when(each[1]))):
        groups[_subject(report)].append((source, report))
    return [_answer(groups[subject], objective, max_memory_bytes) for subject in sorted(groups)]


def _subject(report: Report) -> tuple[object, ...]:
    """What a report is about. Two cards of one model are two devices: they differ by 8 %."""
    workload, device = report.workload, report.device
    parameters = tuple(sorted((name, repr(value)) for name, value in workload.parameters.items()))
    machine = (device.kind, device.slug, device.uuid or "")
    return (
        *machine, workload.reference, workload.source_hash or "", workload.mode, workload.size, parameters,
        workload.batch_size,
    )  # fmt: skip


def _answer(members: list[tuple[str, Report]], objective: Objective, limit: int | None) -> Answer:
    advised = [(source, report, recommend(report, objective, limit)) for source, report in members]
    source, report, advice = next((each for each in advised if each[2].recommendation is not None), advised[0])
    return Answer(source, report, advice, tuple(other for other, _ in members if other != source))


def when(report: Report) -> float:
    """When the run began, in seconds since the epoch; time stamps may have any time zone."""
    return datetime.fromisoformat(report.created_at).timestamp()
