"""Where reports go without --output."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path

from gpubench.errors import GpubenchError
from gpubench.report import store
from gpubench.report.model import Report

RUNS = Path("gpubench-runs")


def new_path(report: Report) -> Path:
    """A path for `report` that nothing has yet: a file, or the folder of both sides of an `ab`; its folder is made."""
    folder = RUNS / report.device.slug
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GpubenchError(
            f"Cannot create the folder {folder}: {os.strerror(error.errno or 0)}.", "Give another --output."
        ) from error
    name = f"{stem(report)}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    return folder / (f"ab-{name}" if report.plan.command == "ab" else f"{name}.json")


def newest_unfinished(report: Report) -> Path:
    """The newest unfinished report of the workload and command of `report`; GpubenchError where there is none."""
    folder = RUNS / report.device.slug
    for path in sorted(folder.glob(f"{stem(report)}-*.json"), reverse=True):
        try:
            earlier = store.load(path)
        except GpubenchError:
            continue  # damaged or foreign: not what is looked for
        if earlier.finished_at is None and earlier.plan.command == report.plan.command:
            return path
    raise GpubenchError(
        f"There is no unfinished report {folder}/{stem(report)}-*.json.", "Name one with --output FILE."
    )


def stem(report: Report) -> str:
    """What file names of that workload and mode begin with."""
    name = re.sub(r"[^a-z0-9]+", "-", report.workload.name.lower()).strip("-")
    return f"{name or 'workload'}-{report.workload.mode}"
