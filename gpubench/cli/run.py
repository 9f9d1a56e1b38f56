"""From a command's options to a run, and from its report to what is printed."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

import gpubench
from gpubench.analysis.knee import knee
from gpubench.cli.options import split_assignment
from gpubench.cli.progress import Quiet, listener
from gpubench.cli.show import print_dry_run, print_report
from gpubench.errors import EXIT_OK, EXIT_REGRESSION, GpubenchError
from gpubench.hardware.nvml import Nvml, Unavailable
from gpubench.matrices import load_matrix
from gpubench.matrix import Builder, Matrix, Technique, build_matrix, sweep
from gpubench.results import store
from gpubench.results.schema import SCHEMA_VERSION, Configuration, Plan, Protocol, Report, Tool, Value
from gpubench.runner.campaign import Campaign
from gpubench.runner.laboratory import Laboratory
from gpubench.runner.process import now
from gpubench.runner.resume import refuse_unlike
from gpubench.toggles import get, parse_value
from gpubench.toggles.toggle import Scope
from gpubench.units import parse_bytes, parse_duration
from gpubench.worker.messages import Described, WorkloadChoice
from gpubench.workloads import check_reference

if TYPE_CHECKING:
    from gpubench.cli.options import ModeName, ObjectiveName, OutputFormat


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for, still as text where reading it needs the device or the workload."""

    command: str
    workload: str
    mode: ModeName | None
    size: str
    parameters: list[str]
    resolution: int | None
    device: str
    fix: list[str]
    objective: ObjectiveName
    max_memory: str | None
    timeout: str
    seed: int
    resume: bool
    dry_run: bool
    output: Path | None
    format: OutputFormat
    quiet: bool
    batch_size: int | None = None
    matrix: str | None = None
    strategy: str | None = None
    set_: list[str] = field(default_factory=list)
    confirm_rounds: int = 0
    sweep: tuple[str, list[int]] | None = None  # toggle and values; no values: what the toggle offers
    overlaps: tuple[int, ...] = ()


def run(request: Request) -> int:
    """Measures what `request` asks for; the exit code."""
    max_memory = parse_bytes(request.max_memory) if request.max_memory else None
    timeout = parse_duration(request.timeout)
    # Complain of what can be told now, before the seconds that torch takes to load.
    check_reference(request.workload)
    if request.matrix:
        load_matrix(request.matrix)
    for text in (*request.set_, *request.fix):
        get(split_assignment(text, "--set" if text in request.set_ else "--fix")[0])
    if request.output:
        store.check_writable(request.output)
    progress = listener(request.quiet or request.dry_run)
    protocol = Protocol(timer="perf_counter", timeout_s=timeout, seed=request.seed, max_memory_bytes=max_memory)
    with Laboratory(choice_of(request), request.device, protocol) as laboratory, progress:
        laboratory.begin_servers(likely_environments(request))
        described = laboratory.describe(request.batch_size)
        laboratory.protocol = protocol_for(described.device.kind, protocol)
        builder = Builder(scope_of(described), fixed(request, described))
        matrix = matrix_of(request, builder)
        if request.dry_run:
            print_dry_run(matrix, request.format)
            return EXIT_OK
        report, path = begin(request, described, laboratory.protocol, matrix)
        report = measure(request, laboratory, builder, matrix, report, path, progress, max_memory)
    print_report(report, request.format)
    if not request.quiet:
        print(f"Report: {path}", file=sys.stderr)  # noqa: T201
    return EXIT_OK if any(row.status == "ok" for row in report.measurements) else EXIT_REGRESSION


def measure(
    request: Request,
    laboratory: Laboratory,
    builder: Builder,
    matrix: Matrix,
    report: Report,
    path: Path,
    progress: Quiet,
    max_memory: int | None,
) -> Report:
    """Runs the campaign; on interruption the report on disk is valid and its place is told."""
    campaign = Campaign(
        laboratory=laboratory,
        builder=builder,
        matrix=matrix,
        report=report,
        path=path,
        listener=progress,
        objective=request.objective,
        max_memory_bytes=max_memory,
        confirm_rounds=request.confirm_rounds,
    )
    try:
        if request.sweep is None:
            return campaign.compare()
        toggle = request.sweep[0]
        return campaign.sweep(lambda done: knee(done, toggle))
    except BaseException as error:
        if not isinstance(error, GpubenchError):
            text = f"Stopped. What was measured is in {path}; go on with: --resume --output {path}"
            print(text, file=sys.stderr)  # noqa: T201
        raise


def protocol_for(device_kind: str, protocol: Protocol) -> Protocol:
    """`protocol` for a CPU or a GPU, whose sampling must be long enough for NVML's averages over up to 1 s."""
    if device_kind != "cuda":
        return protocol
    return msgspec.structs.replace(protocol, timer="cuda_event", min_sampling_s=2.5, max_sampling_s=5.0)


def choice_of(request: Request) -> WorkloadChoice:
    """The workload asked for, with its parameters."""
    parameters = dict(split_assignment(text, "--param") for text in request.parameters)
    if request.resolution is not None:
        parameters["resolution"] = str(request.resolution)
    return WorkloadChoice(
        reference=request.workload,
        size=None if request.size == "auto" else request.size,
        parameters=parameters,
        mode=request.mode,
    )


def scope_of(described: Described) -> Scope:
    """What decides on toggles and values."""
    found = re.match(r"(\d+)\.(\d+)", described.environment.torch)
    version = (int(found.group(1)), int(found.group(2))) if found else (0, 0)
    return Scope(device=described.device, workload=described.workload, torch_version=version)


def fixed(request: Request, described: Described) -> dict[str, Value]:
    """The toggles held at one value in every row."""
    scope, values = scope_of(described), dict[str, Value]()
    for text in request.fix:
        name, value = split_assignment(text, "--fix")
        values[name] = parse_value(get(name), value, scope)
    if request.batch_size is not None:
        if values.get("batch_size", request.batch_size) != request.batch_size:
            raise GpubenchError("--batch-size and --fix batch_size disagree.", "Give only one of them.")
        values["batch_size"] = request.batch_size
    if request.sweep and request.sweep[0] in values:
        raise GpubenchError(f"--fix holds {request.sweep[0]}, which the sweep varies.", "Leave that --fix out.")
    return values


def matrix_of(request: Request, builder: Builder) -> Matrix:
    """What to measure."""
    scope = builder.scope
    if request.sweep:
        toggle, values = request.sweep
        builder.require(toggle)
        chosen = [parse_value(get(toggle), str(value), scope) for value in values] or list(get(toggle).offered(scope))
        overlaps = tuple(parse_value(get("tile_overlap"), str(value), scope) for value in request.overlaps)
        return sweep(builder, toggle, chosen, [Technique("tile_overlap", overlaps)] if overlaps else [])
    wanted: dict[str, tuple[Value, ...]] = {}
    for text in request.set_:
        name, values_text = split_assignment(text, "--set")
        builder.require(name)
        found = tuple(parse_value(get(name), part.strip(), scope) for part in values_text.split(","))
        wanted[name] = wanted.get(name, ()) + found
    strategy = request.strategy or "ladder"
    techniques: list[Technique] = []
    if request.matrix or not wanted:
        profile = load_matrix(request.matrix or "default")
        strategy = request.strategy or profile.strategy
        techniques = list(profile.techniques(scope.workload.mode, scope.device.kind))
    known = {one.toggle for one in techniques}
    techniques = [Technique(one.toggle, wanted.get(one.toggle, one.values)) for one in techniques]
    techniques += [Technique(name, values) for name, values in wanted.items() if name not in known]
    return build_matrix(builder, [without_base(builder, one) for one in techniques], strategy)


def likely_environments(request: Request) -> list[Configuration]:
    """What environment toggles a CPU run will probably try: their servers may load torch while others do."""
    if request.sweep or request.dry_run or not (request.device == "cpu" or has_no_gpu(request.device)):
        return []
    texts = [split_assignment(text, "--set") for text in request.set_]
    found = [(name, value.strip()) for name, values in texts for value in values.split(",")]
    if request.matrix or not request.set_:
        entries = load_matrix(request.matrix or "default").technique
        found += [(entry.toggle, str(value)) for entry in entries for value in entry.values]
    return [{name: value} for name, value in found if get(name).environment and value in get(name).values]


def has_no_gpu(device: str) -> bool:
    """Whether `auto` is sure to mean the CPU."""
    return device == "auto" and isinstance(Nvml.open(), Unavailable)


def without_base(builder: Builder, technique: Technique) -> Technique:
    """`technique` without the value that the baseline has already."""
    base = builder.base.get(technique.toggle)
    return Technique(technique.toggle, tuple(value for value in dict.fromkeys(technique.values) if value != base))


def begin(request: Request, described: Described, protocol: Protocol, matrix: Matrix) -> tuple[Report, Path]:
    """A new report and its path, or the one to go on with."""
    report = Report(
        schema_version=SCHEMA_VERSION,
        created_at=now(),
        finished_at=None,
        tool=Tool(name="gpubench", version=gpubench.__version__),
        device=described.device,
        environment=described.environment,
        workload=described.workload,
        protocol=protocol,
        plan=Plan(
            command=request.command,
            matrix=request.matrix
            or ("default" if not request.set_ and not request.sweep else "from --set and --sizes"),
            strategy=matrix.strategy,
            baseline=matrix.baseline.id,
            objective=request.objective,
            configurations=[matrix.baseline.id, *(row.id for row in matrix.planned)],
        ),
        measurements=[],
    )
    stem = f"{slug(described.workload.name)}-{described.workload.mode}"
    folder = Path("results", described.device.slug)
    if request.resume:
        path = request.output or newest_unfinished(folder, stem)
        if path.exists():
            earlier = store.load(path)
            refuse_unlike(earlier, report, path)
            return msgspec.structs.replace(earlier, finished_at=None, recommendation=None, sweep=None), path
        raise GpubenchError(f"There is no report {path} to go on with.", "Leave --resume out to begin it.")
    path = request.output or folder / f"{stem}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.json"
    if request.output and path.exists() and path.stat().st_size and not is_replaceable(path):
        raise GpubenchError(f"{path} exists and is no gpubench report.", "Choose another --output, or remove it.")
    if not request.output:
        make_folder(folder)
    store.check_writable(path)
    return report, path


def is_replaceable(path: Path) -> bool:
    """Whether writing over `path` loses nothing but a report."""
    try:
        store.load(path)
    except GpubenchError:
        return False
    return True


def make_folder(folder: Path) -> None:
    """Creates `folder`; GpubenchError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GpubenchError(
            f"The folder {folder} cannot be made here: {os.strerror(error.errno or 0)}.", "Give --output FILE."
        ) from error


def newest_unfinished(folder: Path, stem: str) -> Path:
    """The newest report of this workload that was cut off; GpubenchError where there is none."""
    for path in sorted(folder.glob(f"{stem}-*.json"), reverse=True):
        if store.load(path).finished_at is None:
            return path
    raise GpubenchError(f"No unfinished report {folder}/{stem}-*.json is here.", "Name one with --output FILE.")


def slug(name: str) -> str:
    """`name` as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "workload"
