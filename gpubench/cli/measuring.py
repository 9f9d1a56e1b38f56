"""What the measuring commands share: from their options to a request, and from its report to text and exit code."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from gpubench import api
from gpubench.cli.options import which_workload
from gpubench.cli.progress import Quiet, listener
from gpubench.cli.reports import emit, snippet, tell
from gpubench.errors import EXIT_OK, EXIT_REGRESSION, GpubenchError
from gpubench.render.formats import render
from gpubench.render.report_document import reports_content
from gpubench.report import store
from gpubench.report.model import Report
from gpubench.search.requested import assignments, split_assignment
from gpubench.search.strategy import SearchSpace
from gpubench.text import printable
from gpubench.units import parse_bytes, parse_duration

RUNS = Path("gpubench-runs")  # where reports go without --output
# Options that say what is printed and kept, and nothing of what is measured.
OF_THE_OUTPUT = ("format_", "quiet", "dry_run", "output", "resume")


def run(command: str, options: Mapping[str, Any], **more: Any) -> int:
    """Measures what the options of `command` ask for, and `more` fields of the request; the exit code."""
    request = api.StudyRequest(command=command, **{**fields_of(options), **more})
    quiet, output, resume = options["quiet"], options["output"], options["resume"]
    if options["dry_run"]:
        emit(dry_run(api.plan(request), options["format_"]))
        return EXIT_OK
    unsaved: api.ReportNotSaved | None = None
    with listener(quiet) as progress:
        try:
            destination = output or (
                (lambda report: newest_unfinished(report) or new_path(report)) if resume else new_path
            )
            with told_where(progress, "; resume with: --resume --output {path}"):
                report = api.measure(request, output=destination, resume=resume, listener=progress)
        except api.ReportNotSaved as error:
            unsaved, report = error, error.report
    try:
        emit(render(reports_content([report], snippet), options["format_"]))
    finally:  # where nothing can be printed the report is all the more wanted
        if unsaved is None and not quiet:
            tell(f"Report: {progress.path}")
    if unsaved is not None:
        raise GpubenchError(unsaved.message, "The results are printed above.")
    return exit_code(report, request.strict)


def dry_run(space: SearchSpace, format_: str) -> str:
    """Every configuration and every skip with its sentence, as JSON or as lines."""
    rows = [space.baseline, *space.planned]
    outlook = space.strategy.outlook(space)
    if format_ == "json":
        document = {
            "strategy": space.strategy.name,
            "configurations": [
                {"id": row.id, "configuration": row.configuration, "skipped": row.skip or None} for row in rows
            ],
            "ladder": outlook,
            "left_out": space.builder.left_out,
        }
        return msgspec.json.format(msgspec.json.encode(document)).decode() + "\n"
    lines = [f"skip     {row.skip}" if row.skip else f"measure  {row.id}" for row in rows]
    lines += [f"ladder   {line}" for line in outlook]
    lines += [f"no       {name}: {reason}" for name, reason in space.builder.left_out.items()]
    return "".join(f"{printable(line)}\n" for line in lines)


def exit_code(report: Report, strict: bool) -> int:
    """0 where something valid was measured and, with `strict`, no row failed by that."""
    failed = [row for row in report.measurements if strict and row.reason.startswith("--strict")]
    fine = any(row.status == "ok" for row in report.measurements) and not failed
    return EXIT_OK if fine else EXIT_REGRESSION


@contextlib.contextmanager
def told_where(progress: Quiet, next_step: str = "") -> Iterator[None]:
    """Whatever stops the block, the user is told where the report is."""
    try:
        yield
    except api.ReportNotSaved:
        raise
    except BaseException:
        if progress.path is not None:
            path = shlex.quote(str(progress.path))
            tell(f"Stopped. What was measured is in {path}{next_step.format(path=path) or '.'}")
        raise


def fields_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """The request's fields that parsed options make."""
    fields = {name: value for name, value in options.items() if name not in OF_THE_OUTPUT}
    if empty := [name for name in ("preset", "workload_option") if fields.get(name) == ""]:
        raise GpubenchError(f"--{empty[0].removesuffix('_option')} is empty.", "Name one, or leave the option out.")
    fields["workload"] = which_workload(fields.pop("workload"), fields.pop("workload_option"))
    parameters: dict[str, object] = dict(single(fields.pop("param"), "--param"))
    resolution = fields.pop("resolution")
    if resolution is not None and str(parameters.setdefault("resolution", resolution)) != str(resolution):
        raise GpubenchError("--resolution and --param resolution disagree.", "Give only one of them.")
    fields["parameters"] = parameters
    fields["fix"] = single(fields.pop("fix"), "--fix")
    pipeline = fields.pop("pipeline")
    if pipeline is not None and fields["fix"].setdefault("pipeline", pipeline) != pipeline:
        raise GpubenchError("--pipeline and --fix pipeline disagree.", "Give only one of them.")
    if "set_" in fields:
        fields["set"] = assignments(fields.pop("set_") or [], "--set")
    fields["timeout_s"] = parse_duration(fields.pop("timeout"))
    if "max_memory" in fields:
        text = fields.pop("max_memory")
        fields["max_memory_bytes"] = parse_bytes(text) if text else None
    if "allow" in fields:
        fields["allow"] = tuple(fields["allow"] or ())
    return fields


def single(texts: Iterable[str] | None, option: str) -> dict[str, str]:
    """`NAME=VALUE` texts as name -> value; GpubenchError where one name has two values."""
    found: dict[str, str] = {}
    for name, value in (split_assignment(text, option) for text in texts or ()):
        if found.setdefault(name, value) != value:
            raise GpubenchError(f"{option} {name} has the values {found[name]} and {value}.", "Give only one of them.")
    return found


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


def newest_unfinished(report: Report) -> Path | None:
    """The newest unfinished report of the workload and command of `report`; None where there is none."""
    folder = RUNS / report.device.slug
    for path in sorted(folder.glob(f"{stem(report)}-*.json"), reverse=True):
        try:
            earlier = store.load(path)
        except GpubenchError:
            continue  # damaged or foreign: not what is looked for
        if earlier.finished_at is None and earlier.plan.command == report.plan.command:
            return path
    return None


def stem(report: Report) -> str:
    """What file names of that workload and mode begin with."""
    name = re.sub(r"[^a-z0-9]+", "-", report.workload.name.lower()).strip("-")
    return f"{name or 'workload'}-{report.workload.mode}"
