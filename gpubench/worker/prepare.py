"""Builds and seeds a configuration's model and applies the toggles in order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpubench.errors import GpubenchError
from gpubench.report.model import Value
from gpubench.toggles import beside
from gpubench.toggles.model_context import ModelContext
from gpubench.toggles.step_parts import on_device
from gpubench.toggles.toggle import Stage, Toggle
from gpubench.toggles.traits import batch_size
from gpubench.worker.messages import WorkloadChoice
from gpubench.worker.seeding import IMPORT_SEED, seed_everything
from gpubench.workloads.batch import make
from gpubench.workloads.building import build_model, own_options, set_mode
from gpubench.workloads.loader import Loaded, load
from gpubench.workloads.source import import_module_of

if TYPE_CHECKING:
    import torch

    from gpubench.workloads.workload import Workload
    from gpubench.workloads.workload_facts import Mode


def load_choice(choice: WorkloadChoice) -> tuple[Loaded, Mode]:
    """The workload that `choice` names and the mode; GpubenchError if it does not support the mode."""
    seed_everything(IMPORT_SEED)
    import_module_of(choice.reference)  # where the server has not done so
    seed_everything(IMPORT_SEED)
    loaded = load(choice.reference, choice.size, choice.parameters)
    if choice.source_hash and loaded.source_hash != choice.source_hash:
        raise GpubenchError(
            f"The file of workload {choice.reference!r} changed during the run.",
            "Start the run again, so that every row measures the same model.",
        )
    modes = loaded.workload.modes
    mode = choice.mode or modes[0]
    if mode not in modes:
        raise GpubenchError(
            f"Workload {choice.reference!r} cannot do {mode}.", f"It can do: {', '.join(modes)}; use --mode {modes[0]}."
        )
    return loaded, "training" if mode == "training" else "inference"


def make_batches(loaded: Loaded, batch_size: int, count: int, seed: int) -> list[Any]:
    """`count` different batches on the CPU; batch i is the same in every process."""
    return [make_batch(loaded.workload, batch_size, seed + 1 + index) for index in range(count)]


def make_batch(workload: Workload, batch_size: int, seed: int) -> Any:
    """A batch on the CPU, the same in every process; what does not draw from the generator is seeded as well."""
    seed_everything(seed)
    return make(workload, batch_size, seed)


def use_device(name: str) -> torch.device:
    """The device of that name, made torch's current device for streams, events and memory figures."""
    import torch

    device = torch.device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def build(loaded: Loaded, mode: Mode, device: torch.device, configuration: dict[str, Value], seed: int) -> ModelContext:
    """A context on the CPU with the model as its workload builds it."""
    seed_everything(seed)
    options = own_options(loaded.workload, configuration)
    model = build_model(loaded.workload, options)
    set_mode(model, mode)
    return ModelContext(
        workload=loaded.workload,
        mode=mode,
        device=device,
        batch_size=batch_size(configuration, loaded.workload.batch_size),
        configuration=dict(configuration),
        model=model,
        options=options,
        first_batch=seed + 1,
    )


def toggles_of(context: ModelContext) -> list[tuple[Toggle, Value]]:
    """The toggles that the context's configuration names, in the order in which they are applied."""
    configuration = context.configuration
    known = beside(context.workload.toggles)
    return [(toggle, configuration[name]) for name, toggle in known.items() if name in configuration]


def apply_toggles(context: ModelContext, batches: list[Any]) -> None:
    """Applies every toggle of the context's configuration, moving model and `batches` to the device on the way."""
    context.batches = batches
    toggles = toggles_of(context)
    for toggle, value in toggles:
        if toggle.stage <= Stage.MODEL:
            toggle.apply(context, value)
    context.place()
    if context.inputs_resident:
        context.batches = [on_device(batch, context.device) for batch in context.batches]
    for toggle, value in toggles:
        if toggle.stage > Stage.MODEL:
            toggle.apply(context, value)
