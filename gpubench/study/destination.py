"""Where a study's report goes, and which report there a study may continue."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from gpubench.errors import GpubenchError
from gpubench.report import store
from gpubench.report.model import Report
from gpubench.study.listener import Listener

# A path, or what makes one from the report before its first row; None: nothing stays on disk.
Output = Path | str | Callable[[Report], Path] | None


class ReportNotSaved(GpubenchError):
    """The measuring is done and the report could not be saved; `report` has all of it."""

    def __init__(self, reason: str, report: Report) -> None:
        super().__init__(f"The report could not be saved: {reason}")
        self.report = report


def check_output(output: Output, resume: bool) -> None:
    """Raises GpubenchError where `output` cannot be written, or none is named to resume."""
    if resume and output is None:
        raise GpubenchError("There is no report to resume without output.", "Give the report's path as output.")
    if isinstance(output, str | Path):
        store.check_writable(output)


def path_of(output: Output, report: Report, scratch: Path) -> Path:
    """The path that `output` means; `scratch` where it means none."""
    if output is None:
        return scratch
    return output(report) if callable(output) else Path(output)


def begin(report: Report, path: Path, resume: bool, listener: Listener) -> Report:
    """The report to begin with: `report`, which has no rows, or with `resume` the unfinished one at `path`.

    Where there is nothing to resume yet, `listener` is told and a new one begins: the command line of a job that a
    scheduler restarts is always the same. A finished report at `path` is kept as `.bak`. Raises GpubenchError where
    `path` is a foreign file or an unfinished run, or differs from `report` so that it cannot be resumed.
    """
    there = path.exists() and path.stat().st_size > 0
    if resume and not there:
        listener.note(f"There is no unfinished report to resume yet: a new one begins at {path}.")
    elif resume:
        earlier = store.load(path)
        refuse_unlike(earlier, report, path)
        plan = msgspec.structs.replace(earlier.plan, objective=report.plan.objective, allow=report.plan.allow)
        return msgspec.structs.replace(earlier, plan=plan, finished_at=None, recommendation=None, sweep=None)
    elif there:
        keep_finished(path)
    store.create(report, path)
    return report


def keep_finished(path: Path) -> None:
    """Keeps a finished report as `.bak`; GpubenchError where `path` is a foreign file or an unfinished run."""
    try:
        finished = store.load(path).finished_at is not None
    except GpubenchError as error:
        raise GpubenchError(
            f"{path} exists and is not a gpubench report.", "Choose another --output, or remove it."
        ) from error
    if not finished:
        raise GpubenchError(f"{path} holds an unfinished run.", "Resume it with --resume, or remove it.")
    path.replace(path.with_name(f"{path.name}.bak"))


# Facts of the moment, not of what was measured.
VOLATILE = {"unavailable", "variables"}


def differences(earlier: Report, current: Report) -> list[str]:
    """What is not alike, as `device.name: 'A' in the report, 'B' now`."""
    texts: list[str] = []
    for part in ("tool", "device", "environment", "workload", "protocol"):
        before, now = msgspec.to_builtins(getattr(earlier, part)), msgspec.to_builtins(getattr(current, part))
        texts += _differences(part, before, now)
    for name in ("command", "strategy", "baseline", "matrix"):
        texts += _differences(f"plan.{name}", getattr(earlier.plan, name), getattr(current.plan, name))
    return texts


def _differences(name: str, before: Any, now: Any) -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            text
            for key in dict.fromkeys([*before, *now])
            if key not in VOLATILE
            for text in _differences(f"{name}.{key}", before.get(key), now.get(key))
        ]
    return [] if before == now else [f"{name}: {before!r} in the report, {now!r} now"]


def refuse_unlike(earlier: Report, current: Report, path: Path) -> None:
    """Raises GpubenchError naming what differs where `current` may not continue `earlier`."""
    texts = differences(earlier, current)
    if texts:
        more = f" (and {len(texts) - 3} more)" if len(texts) > 3 else ""
        raise GpubenchError(
            f"Cannot resume {path}: it differs in {'; '.join(texts[:3])}{more}.",
            "Leave --resume out to begin a new report.",
        )
