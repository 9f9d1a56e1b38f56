"""From a request to what is measured on this device and workload."""

from __future__ import annotations

from gpubench.errors import GpubenchError
from gpubench.hardware.nvml import Nvml, Unavailable
from gpubench.report.model import Configuration
from gpubench.search.space import Builder, ToggleValues
from gpubench.search.strategies import get_strategy, search_space
from gpubench.search.strategies.sweep import SWEEP
from gpubench.search.strategy import SearchSpace
from gpubench.study.request import Choices, StudyRequest, values_of
from gpubench.toggles import get, parse_value
from gpubench.toggles.toggle import Scope
from gpubench.toggles.traits import batch_size_toggle
from gpubench.worker.messages import ProbeResult


def scope_of(described: ProbeResult) -> Scope:
    """What decides on toggles and values."""
    return Scope.of(described.device, described.workload, described.environment)


def builder_of(request: StudyRequest, described: ProbeResult) -> Builder:
    """What makes configurations here, with the toggles that are held at one value in every row."""
    scope = scope_of(described)
    held = request.requested().fixed_values(scope)
    if request.batch_size is not None:
        name = batch_size_toggle()
        if held.get(name, request.batch_size) != request.batch_size:
            raise GpubenchError(f"--batch-size and --fix {name} disagree.", "Give only one of them.")
        held[name] = request.batch_size
    if request.sweep and request.sweep in held:
        raise GpubenchError(f"--fix holds {request.sweep}, which the sweep varies.", "Leave that --fix out.")
    return Builder(scope, held)


def space_of(request: StudyRequest, builder: Builder) -> SearchSpace:
    """What to measure."""
    if request.sweep:
        return search_space(builder, swept(request, builder, request.sweep), SWEEP)
    requested = request.requested()
    strategy = request.strategy or (requested.preset.strategy if requested.preset else "ladder")
    values, together = requested.toggle_values(builder), requested.combinations(builder)
    return search_space(builder, values, get_strategy(strategy), requested.values, together)


def swept(request: StudyRequest, builder: Builder, toggle: str) -> list[ToggleValues]:
    """The values of `toggle`, and of the toggles that they are combined with."""
    builder.require(toggle)
    values: Choices = {toggle: request.values, **request.also}
    # Without the scope: a size that this input does not allow is a row with its sentence, not the sweep's end.
    given = {name: [parse_value(get(name), str(each)) for each in values_of(texts)] for name, texts in values.items()}
    return [ToggleValues(name, tuple(parsed or get(name).offered(builder.scope))) for name, parsed in given.items()]


def likely_environments(request: StudyRequest) -> list[Configuration]:
    """What environment toggles a CPU run will probably try: their servers may load torch while others do."""
    if request.sweep or not means_cpu(request.device):
        return []
    return request.requested().environments()


def means_cpu(device: str) -> bool:
    """Whether `device` is sure to mean the CPU, as `auto` may."""
    if device != "auto":
        return device == "cpu"
    nvml = Nvml.open()
    if isinstance(nvml, Unavailable):
        return True
    nvml.close()
    return False
