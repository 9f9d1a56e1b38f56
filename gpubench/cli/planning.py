"""What a command was asked for, and the matrix that follows from it on this device and workload."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpubench.cli.options import split_assignment, which_workload
from gpubench.errors import GpubenchError
from gpubench.hardware.nvml import Nvml, Unavailable
from gpubench.report.model import Configuration, Value
from gpubench.search.presets import load_matrix
from gpubench.search.space import Builder, Matrix, ToggleValues, build_matrix, sweep
from gpubench.toggles import get, parse_value
from gpubench.toggles.toggle import Scope
from gpubench.toggles.traits import batch_size_toggle
from gpubench.worker.messages import ProbeResult, WorkloadChoice

if TYPE_CHECKING:
    from gpubench.cli.options import ModeName, ObjectiveName, OutputFormat, PairName


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
    rounds: int = 1
    final_rounds: int | None = 0  # None: as many as is usual, but not for long
    pair: PairName = "process"
    strict: bool = False
    allow: list[str] = field(default_factory=list)
    sweep: tuple[str, list[int]] | None = None  # toggle and values; no values: what the toggle offers
    sweep_also: dict[str, list[int]] = field(default_factory=dict)  # toggles that each value is combined with


def request_of(command: str, options: Mapping[str, Any], **more: Any) -> Request:
    """The request that a command's parsed options make; `more` adds to them or replaces them."""
    found = dict(options)
    fields = {
        "command": command,
        "workload": which_workload(found.pop("workload"), found.pop("workload_option")),
        "parameters": found.pop("param") or [],
        "fix": found.pop("fix") or [],
        "set_": found.pop("set_", None) or [],
        "allow": found.pop("allow", None) or [],
        "format": found.pop("format_"),
        **found,
    }
    return Request(**{**fields, **more})


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


def scope_of(described: ProbeResult) -> Scope:
    """What decides on toggles and values."""
    found = re.match(r"(\d+)\.(\d+)", described.environment.torch)
    version = (int(found.group(1)), int(found.group(2))) if found else (0, 0)
    return Scope(device=described.device, workload=described.workload, torch_version=version)


def fixed(request: Request, described: ProbeResult) -> dict[str, Value]:
    """The toggles held at one value in every row."""
    scope, values = scope_of(described), dict[str, Value]()
    if request.matrix:
        values.update(load_matrix(request.matrix).fix)
    for text in request.fix:
        name, value = split_assignment(text, "--fix")
        values[name] = parse_value(get(name), value, scope)
    if request.batch_size is not None:
        if values.get(batch_size_toggle(), request.batch_size) != request.batch_size:
            raise GpubenchError(f"--batch-size and --fix {batch_size_toggle()} disagree.", "Give only one of them.")
        values[batch_size_toggle()] = request.batch_size
    if request.sweep and request.sweep[0] in values:
        raise GpubenchError(f"--fix holds {request.sweep[0]}, which the sweep varies.", "Leave that --fix out.")
    return values


def matrix_of(request: Request, builder: Builder) -> Matrix:
    """What to measure."""
    scope = builder.scope
    if request.sweep:
        toggle, values = request.sweep
        builder.require(toggle)
        # Without the scope: a size that this input does not allow is a row with its sentence, not the sweep's end.
        chosen = [parse_value(get(toggle), str(value)) for value in values] or list(get(toggle).offered(scope))
        also = [
            ToggleValues(name, tuple(parse_value(get(name), str(value)) for value in others))
            for name, others in request.sweep_also.items()
        ]
        return sweep(builder, toggle, chosen, also)
    wanted: dict[str, tuple[Value, ...]] = {}
    for text in request.set_:
        name, values_text = split_assignment(text, "--set")
        builder.require(name)
        found = tuple(parse_value(get(name), part.strip(), scope) for part in values_text.split(","))
        wanted[name] = wanted.get(name, ()) + found
    strategy = request.strategy or "ladder"
    techniques: list[ToggleValues] = []
    if request.matrix or not wanted:
        profile = load_matrix(request.matrix or "default")
        strategy = request.strategy or profile.strategy
        techniques = list(profile.techniques(scope.workload.mode, scope.device.kind))
    known = {one.toggle for one in techniques}
    techniques = [ToggleValues(one.toggle, wanted.get(one.toggle, one.values)) for one in techniques]
    techniques += [ToggleValues(name, values) for name, values in wanted.items() if name not in known]
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
    if device != "auto":
        return False
    nvml = Nvml.open()
    if isinstance(nvml, Unavailable):
        return True
    nvml.close()
    return False


def without_base(builder: Builder, technique: ToggleValues) -> ToggleValues:
    """`technique` without the value that the baseline has already."""
    base = builder.base.get(technique.toggle)
    return ToggleValues(technique.toggle, tuple(value for value in dict.fromkeys(technique.values) if value != base))
