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


def load_all(path: Path) -> tuple[list[tuple[str, Report]], list[str]]:
    """The reports at `path` (a file or a folder) with their file names, and why other files of a folder were skipped.

    Raises GpubenchError for a file that is not a report.
    """
    if not path.is_dir():
        return [(str(path), store.load(path))], []
    reports, passed = store.load_folder(path)
    return [(str(file), report) for file, report in reports], passed


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

    Raises GpubenchError, before any is written, where one cannot be a baseline or two would be the same one.
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
    targets = [baseline_path(path, report) for _, report in reports]
    if len(set(targets)) < len(targets):
        raise GpubenchError("Two of the reports would become the same baseline.", "Name one of them, or a folder.")
    return [adopt(report, path, reason) for _, report in reports]


def adopt(report: Report, path: Path, reason: str) -> Path:
    """Saves `report` as the baseline at `path` with the reason; returns its file. Raises GpubenchError as `store.save`.

    An existing file that is not a report, or is the baseline of another workload or device, is refused.
    """
    target = baseline_path(path, report)
    earlier: Report | None = None
    if target.exists() and target.stat().st_size:
        earlier = store.load(target)
        if subject(earlier) != subject(report):
            raise GpubenchError(
                f"{target} is the baseline of {' '.join(subject(earlier))}.",
                "Name another file, or a folder, which keeps them side by side.",
            )
    adoption = Adoption(
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        reason=reason,
        replaces=earlier.created_at if earlier else None,
    )
    store.save(msgspec.structs.replace(report, adopted=adoption), target)
    return target


def subject(report: Report) -> tuple[str, ...]:
    """What a baseline is for: command, workload, mode, size, parameters, batch size and device."""
    workload, device = report.workload, report.device
    parameters = [f"{name}={value}" for name, value in sorted(workload.parameters.items())]
    card = [device.uuid] if device.uuid else []
    batch = f"batch size {workload.batch_size}"
    return (report.plan.command, workload.name, workload.mode, workload.size, *parameters, batch, device.name, *card)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.+]+", "-", text.lower()).strip("-.") or "x"
