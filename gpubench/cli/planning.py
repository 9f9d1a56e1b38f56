"""What a command was asked for, and the search space that follows from it on this device and workload."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpubench.cli.options import which_workload
from gpubench.errors import GpubenchError
from gpubench.hardware.nvml import Nvml, Unavailable
from gpubench.report.model import Configuration, Value
from gpubench.search.requested import DEFAULT_PRESET, Requested, read_request, split_assignment
from gpubench.search.space import Builder, ToggleValues
from gpubench.search.strategies import get_strategy, search_space
from gpubench.search.strategies.sweep import SWEEP
from gpubench.search.strategy import SearchSpace
from gpubench.toggles import get, parse_value
from gpubench.toggles.toggle import Scope
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
    overlaps: tuple[int, ...] = ()

    @functools.cached_property
    def requested(self) -> Requested:
        """What --set, --fix and the preset ask for; GpubenchError where that is wrong on any device."""
        default = DEFAULT_PRESET if self.command == "compare-opts" else None
        return read_request(self.set_, self.fix, self.matrix, default)


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
    values = request.requested.fixed_values(scope_of(described))
    if request.batch_size is not None:
        if values.get("batch_size", request.batch_size) != request.batch_size:
            raise GpubenchError("--batch-size and --fix batch_size disagree.", "Give only one of them.")
        values["batch_size"] = request.batch_size
    if request.sweep and request.sweep[0] in values:
        raise GpubenchError(f"--fix holds {request.sweep[0]}, which the sweep varies.", "Leave that --fix out.")
    return values


def matrix_of(request: Request, builder: Builder) -> SearchSpace:
    """What to measure."""
    if request.sweep:
        toggle, values = request.sweep
        builder.require(toggle)
        # Without the scope: a size that this input does not allow is a row with its sentence, not the sweep's end.
        chosen = [parse_value(get(toggle), str(value)) for value in values] or list(get(toggle).offered(builder.scope))
        overlaps = tuple(parse_value(get("tile_overlap"), str(value)) for value in request.overlaps)
        also = [ToggleValues("tile_overlap", overlaps)] if overlaps else []
        return search_space(builder, [ToggleValues(toggle, tuple(chosen)), *also], SWEEP)
    requested = request.requested
    strategy = request.strategy or (requested.preset.strategy if requested.preset else "ladder")
    return search_space(builder, requested.toggle_values(builder), get_strategy(strategy))


def likely_environments(request: Request) -> list[Configuration]:
    """What environment toggles a CPU run will probably try: their servers may load torch while others do."""
    if request.sweep or request.dry_run or not (request.device == "cpu" or has_no_gpu(request.device)):
        return []
    return request.requested.environments()


def has_no_gpu(device: str) -> bool:
    """Whether `auto` is sure to mean the CPU."""
    if device != "auto":
        return False
    nvml = Nvml.open()
    if isinstance(nvml, Unavailable):
        return True
    nvml.close()
    return False
