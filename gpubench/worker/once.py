"""What a worker does without measuring: describe workload and device, or compute the reference outputs."""

from __future__ import annotations

import contextlib
import hashlib
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from gpubench.text import encodable, kind_and_message
from gpubench.toggles.own import declared
from gpubench.toggles.toggle import Scope
from gpubench.worker import fingerprint, limits, process_settings, reference
from gpubench.worker.facts import Facts
from gpubench.worker.fallbacks import Way, first_that_fits, ways
from gpubench.worker.fill import Filled
from gpubench.worker.messages import Describe, MakeReference, Module, ProbeResult, ReferenceMade, importing
from gpubench.worker.prepare import apply_toggles, build, load_choice, make_batches, toggles_of, use_device
from gpubench.worker.repeatability import Fresh, study_inference, study_training
from gpubench.worker.step import Stepper
from gpubench.workloads.batch import can_be_split, split
from gpubench.workloads.catalog import resolve_size
from gpubench.workloads.source import blaming

if TYPE_CHECKING:
    import torch


def describe(request: Describe, tell: Callable[[str], None] = lambda _: None) -> ProbeResult:
    """The facts of workload, device and software, found in this process; `tell` is called with what takes time."""
    import torch

    from gpubench.hardware.probe import cuda_problem, probe_device, probe_environment
    from gpubench.workloads.describe import describe as facts_of

    choice, device, environment = request.choice, probe_device(request.device), probe_environment()
    unusable = request.device == "auto" and device.kind == "cpu" and torch.cuda.is_available()
    memory = [known for known in (device.total_memory_bytes, request.max_memory_bytes) if known is not None]
    size = resolve_size(choice.reference, choice.size, device.kind, min(memory, default=None), choice.mode)
    tell(importing(choice.reference))
    loaded, mode = load_choice(msgspec.structs.replace(choice, size=size))
    tell("building the model")
    facts = facts_of(loaded, mode, request.batch_size)
    notes = [*facts.notes, *process_settings.notes(device.kind)]
    facts = msgspec.structs.replace(facts, settings=process_settings.changed(device.kind), notes=notes)
    scope = Scope.of(device, facts, environment)
    with blaming(f"The toggles of {choice.reference}", loaded.file):
        own = [declared(toggle, scope) for toggle in loaded.workload.toggles]
    return ProbeResult(
        workload=msgspec.structs.replace(facts, toggles=own),
        device=device,
        environment=environment,
        note=f"There is a GPU, but the CPU was measured. {cuda_problem()}" if unusable else "",
        modules=own_modules(loaded.file),
    )


def own_modules(file: Path | None) -> dict[str, Module]:
    """The imported modules that belong neither to Python nor to an installed package nor to gpubench."""
    import gpubench

    foreign = [Path(path).resolve() for path in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}]
    foreign.append(Path(gpubench.__file__).resolve().parent)
    found = {}
    for name, module in list(sys.modules.items()):
        origin = getattr(module, "__file__", None)
        if not isinstance(origin, str) or not origin.endswith(".py"):
            continue
        path = Path(origin).resolve()
        installed = "site-packages" in path.parts or "dist-packages" in path.parts
        if installed or path == (file and file.resolve()) or any(path.is_relative_to(one) for one in foreign):
            continue
        with contextlib.suppress(OSError):
            found[name] = Module(encodable(str(path)), hashlib.sha256(path.read_bytes()).hexdigest())
    return found


def make_reference(request: MakeReference) -> ReferenceMade:
    """Runs the plain model in strict fp32 on the same inputs; stores its outputs and how much they vary by chance."""
    device = use_device(request.device)
    if request.protocol.max_memory_bytes and device.type == "cpu":
        limits.limit_memory(device, request.protocol.max_memory_bytes)
    loaded, mode = load_choice(request.choice)
    folder, seed = Path(request.folder), request.protocol.seed

    def make(way: Way) -> None:
        def plain() -> Fresh:
            context = build(loaded, mode, way.device, request.configuration, seed)
            context.facts = request.facts
            batches = make_batches(loaded, context.batch_size, request.protocol.input_batches, seed)
            built = fingerprint.of(context.model, batches)
            filled = Filled(context.model, seed)
            apply_toggles(context, batches)
            return Fresh(Stepper(context), built, filled)

        facts = Facts(request.configuration, {}, what=f"{reference.MODEL}, {way.where}")
        if mode == "training":
            update, facts = study_training(plain, unfit, seed, request.protocol.quality_steps, facts)
            reference.save_training(folder, update, facts)
        else:
            found = study_inference(plain, infer_in_parts, unfit, seed, facts)
            reference.save_inference(folder, found.outputs, found.update, found.facts, found.timed)

    choices = ways(device, mode)
    way = first_that_fits(choices, make)
    return ReferenceMade() if way is choices[0] else ReferenceMade(way.where)


def unfit(stepper: Stepper) -> str:
    """Why what the step computes is none to compare with, from one more step that is profiled; empty where it is."""
    from gpubench.measure.trace import trace_step

    context = stepper.context
    checks = [toggle.unfit for toggle, _ in toggles_of(context) if toggle.unfit]
    if not checks:
        return ""
    step = stepper.step if context.mode == "training" else lambda: infer_in_parts(stepper, 0)
    try:
        context.trace = trace_step(step, cuda=context.device.type == "cuda")
    except Exception as error:  # noqa: BLE001 - the checks say that there is no trace
        context.trace_error = f"the profiler failed: {kind_and_message(error)}"
    problem = "; ".join(filter(None, (check(context) for check in checks)))
    return problem and f"there is no fp32 reference, because the model does not run in fp32: {problem}"


def infer_in_parts(stepper: Stepper, index: int) -> dict[str, torch.Tensor]:
    """The outputs for batch `index`, split into as few parts as fit: fp32 may need more memory than was measured."""
    context, parts = stepper.context, 1
    batch = context.batches[index]
    while True:
        try:
            found = []
            # The whole batch as it is: some steps know their inputs by identity.
            for part in split(batch, parts) if parts > 1 else [batch]:
                context.batches[index] = part
                stepper.run(index)
                found.append(reference.snapshot(stepper.output))
            return found[0] if len(found) == 1 else reference.join(found)
        except (RuntimeError, MemoryError) as error:
            if parts >= context.batch_size or not limits.is_out_of_memory(error) or not can_be_split(batch):
                raise
            parts *= 2
        finally:
            context.batches[index] = batch
