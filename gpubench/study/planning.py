"""From a request to what is measured on this device and workload."""

from __future__ import annotations

import re

from gpubench.errors import GpubenchError
from gpubench.hardware.nvml import Nvml, Unavailable
from gpubench.report.model import Configuration, Value
from gpubench.search.presets import load_matrix
from gpubench.search.space import Builder, Matrix, ToggleValues, build_matrix, sweep
from gpubench.study.request import StudyRequest, values_of
from gpubench.toggles import get, parse_value
from gpubench.toggles.toggle import Scope
from gpubench.toggles.traits import batch_size_toggle
from gpubench.worker.messages import ProbeResult


def scope_of(described: ProbeResult) -> Scope:
    """What decides on toggles and values."""
    numbers = re.match(r"(\d+)\.(\d+)", described.environment.torch)
    version = (int(numbers.group(1)), int(numbers.group(2))) if numbers else (0, 0)
    return Scope(device=described.device, workload=described.workload, torch_version=version)


def fixed(request: StudyRequest, described: ProbeResult) -> dict[str, Value]:
    """The toggles held at one value in every row."""
    scope, values = scope_of(described), dict[str, Value]()
    if request.preset:
        values.update(load_matrix(request.preset).fix)
    for name, value in request.fix.items():
        values[name] = parse_value(get(name), str(value), scope)
    if request.batch_size is not None:
        name = batch_size_toggle()
        if values.get(name, request.batch_size) != request.batch_size:
            raise GpubenchError(f"--batch-size and --fix {name} disagree.", "Give only one of them.")
        values[name] = request.batch_size
    if request.sweep and request.sweep in values:
        raise GpubenchError(f"--fix holds {request.sweep}, which the sweep varies.", "Leave that --fix out.")
    return values


def matrix_of(request: StudyRequest, builder: Builder) -> Matrix:
    """What to measure."""
    return sweep_of(request, builder, request.sweep) if request.sweep else comparison_of(request, builder)


def sweep_of(request: StudyRequest, builder: Builder, toggle: str) -> Matrix:
    """Every value of `toggle`, in all combinations with the request's further toggles."""
    builder.require(toggle)
    # Without the scope: a size that this input does not allow is a row with its sentence, not the sweep's end.
    chosen = [parse_value(get(toggle), str(value)) for value in request.values]
    chosen = chosen or list(get(toggle).offered(builder.scope))
    also = [
        ToggleValues(name, tuple(parse_value(get(name), str(value)) for value in values_of(values)))
        for name, values in request.also.items()
    ]
    return sweep(builder, toggle, chosen, also)


def comparison_of(request: StudyRequest, builder: Builder) -> Matrix:
    """The preset's toggles with the request's own values, by the strategy of either."""
    scope = builder.scope
    wanted: dict[str, tuple[Value, ...]] = {}
    for name, values in request.set.items():
        builder.require(name)
        wanted[name] = tuple(parse_value(get(name), str(value), scope) for value in values_of(values))
    strategy = request.strategy or "ladder"
    techniques: list[ToggleValues] = []
    if request.preset or not wanted:
        profile = load_matrix(request.preset or "default")
        strategy = request.strategy or profile.strategy
        techniques = list(profile.techniques(scope.workload.mode, scope.device.kind))
    known = {one.toggle for one in techniques}
    techniques = [ToggleValues(one.toggle, wanted.get(one.toggle, one.values)) for one in techniques]
    techniques += [ToggleValues(name, values) for name, values in wanted.items() if name not in known]
    return build_matrix(builder, [without_base(builder, one) for one in techniques], strategy)


def likely_environments(request: StudyRequest) -> list[Configuration]:
    """What environment toggles a CPU run will probably try: their servers may load torch while others do."""
    if request.sweep or not (request.device == "cpu" or has_no_gpu(request.device)):
        return []
    likely = [(name, value) for name, values in request.set.items() for value in values_of(values)]
    if request.preset or not request.set:
        entries = load_matrix(request.preset or "default").technique
        likely += [(entry.toggle, value) for entry in entries for value in entry.values]
    return [{name: value} for name, value in likely if get(name).environment and value in get(name).values]


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
