"""Baselines: reports that others are compared with, in one file or in a folder with those of several devices."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from gpubench.errors import GpubenchError
from gpubench.report import store
from gpubench.report.model import Adoption, Report


def baseline_path(path: Path, report: Report) -> Path:
    """The file for the baseline of `report`: `path` itself if it names a file, else a file below that folder.

    A folder keeps one baseline per device, command, workload, mode, size, batch size, set of parameters and torch.
    """
    if path.suffix == ".json" and not path.is_dir():
        return path
    workload, device = report.workload, report.device
    card = f"-{_slug(device.uuid)[-12:]}" if device.uuid else ""
    parts = [_slug(report.plan.command), _slug(workload.name), workload.mode, _slug(workload.size)]
    parts.append(f"batch-{workload.batch_size}")
    if workload.parameters:
        text = json.dumps(workload.parameters, sort_keys=True)
        parts.append(hashlib.sha256(text.encode()).hexdigest()[:8])
    parts.append(f"torch-{_slug(report.environment.torch)}")
    return path / f"{device.slug}{card}" / f"{'-'.join(parts)}.json"


def adopt_all(reports: Sequence[tuple[str, Report]], path: Path, reason: str) -> list[Path]:
    """Makes the reports, each with its name, baselines at `path`; where they went.

    Raises GpubenchError, before any is written, where one cannot be a baseline, two would be the same one, or the file
    there is no report or the baseline of another workload or device; and as `store.save`.
    """
    for name, report in reports:
        if report.finished_at is None:
            raise GpubenchError(
                f"{name} holds an unfinished run.", "Finish it with --resume before it becomes a baseline."
            )
        if not any(row.status == "ok" for row in report.measurements):
            raise GpubenchError(f"{name} has no valid row, so it cannot be a baseline.")
        if report.session is not None:
            raise GpubenchError(
                f"{name} is a side of an A/B comparison, so it cannot be a baseline.",
                "Take a report of compare-opts or a sweep.",
            )
        if baseline_path(path, report).resolve() == Path(name).resolve():
            raise GpubenchError(f"{name} is the report itself.", "Name another file or a folder as --baseline.")
    targets = {baseline_path(path, report): report for _, report in reports}
    if len(targets) < len(reports):
        raise GpubenchError("Two of the reports would become the same baseline.", "Name one of them, or a folder.")
    adopted = {target: _adopted(report, target, reason) for target, report in targets.items()}
    for target, report in adopted.items():
        store.save(report, target)
    return list(adopted)


def _adopted(report: Report, target: Path, reason: str) -> Report:
    """`report` as the baseline that replaces the one at `target`, which must be of the same workload and device."""
    earlier = store.load(target) if target.exists() and target.stat().st_size else None
    if earlier and _subject(earlier) != _subject(report):
        raise GpubenchError(
            f"{target} is the baseline of {' '.join(_subject(earlier))}.",
            "Name another file, or a folder, which keeps them side by side.",
        )
    at, replaces = datetime.now(UTC).isoformat(timespec="seconds"), earlier.created_at if earlier else None
    return msgspec.structs.replace(report, adopted=Adoption(at=at, reason=reason, replaces=replaces))


def _subject(report: Report) -> tuple[str, ...]:
    """What a baseline is for: command, workload, mode, size, parameters, batch size and device."""
    workload, device = report.workload, report.device
    parameters = [f"{name}={value}" for name, value in sorted(workload.parameters.items())]
    card = [device.uuid] if device.uuid else []
    batch = f"batch size {workload.batch_size}"
    return (report.plan.command, workload.name, workload.mode, workload.size, *parameters, batch, device.name, *card)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.+]+", "-", text.lower()).strip("-.") or "x"
