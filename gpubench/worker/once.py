"""What a worker does without measuring: describe workload and device, or compute the reference outputs."""

from __future__ import annotations

import contextlib
import hashlib
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from gpubench.worker import limits, process_settings, reference
from gpubench.worker.messages import Describe, MakeReference, Module, ProbeResult, ReferenceMade
from gpubench.worker.prepare import (
    apply_toggles,
    build,
    load_choice,
    make_batches,
    seed_everything,
    toggles_of,
    use_device,
)
from gpubench.worker.step import Stepper
from gpubench.workloads.catalog import resolve_size

if TYPE_CHECKING:
    import torch


def describe(request: Describe) -> ProbeResult:
    """The facts of workload, device and software, found in this process."""
    from gpubench.hardware.probe import choose_device, probe_device, probe_environment
    from gpubench.workloads.describe import describe as facts_of

    device = choose_device(request.device)
    choice = request.choice
    probed, environment = probe_device(device), probe_environment()  # before the workload's code changes anything
    size = resolve_size(choice.reference, choice.size, device.partition(":")[0])
    loaded, mode = load_choice(msgspec.structs.replace(choice, size=size))
    facts = facts_of(loaded, mode, request.batch_size)
    return ProbeResult(
        workload=msgspec.structs.replace(facts, settings=process_settings.changed(probed.kind)),
        device=probed,
        environment=environment,
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
            found[name] = Module(str(path), hashlib.sha256(path.read_bytes()).hexdigest())
    return found


def make_reference(request: MakeReference) -> ReferenceMade:
    """Runs the plain model in strict fp32 on the same inputs; stores its outputs and how much they vary by chance."""
    device = use_device(request.device)
    if request.protocol.max_memory_bytes and device.type == "cpu":
        limits.limit_memory(device, request.protocol.max_memory_bytes)
    loaded, mode = load_choice(request.choice)
    folder, seed = Path(request.folder), request.protocol.seed

    def plain() -> Stepper:
        context = build(loaded, mode, device, request.configuration, seed)
        context.facts = request.facts
        apply_toggles(context, make_batches(loaded, context.batch_size, request.protocol.input_batches, seed))
        return Stepper(context)

    stepper = plain()
    if mode == "training":
        steps = request.protocol.quality_steps
        losses, update = train(stepper, steps)
        stepper = plain()
        seed_everything(seed + 1)  # same weights and inputs; only random numbers drawn in the step (dropout) differ
        again, _ = train(stepper, steps)
        reference.save_training(folder, losses, update, reference.loss_spread(losses, again))
    else:
        outputs = [infer_in_parts(stepper, index) for index in range(len(stepper.context.batches))]
        seed_everything(seed + 1)
        again_first = infer_in_parts(stepper, 0)
        reference.save_inference(folder, outputs, reference.output_spread(outputs[0], again_first))
    return ReferenceMade(unfit(stepper))


def unfit(stepper: Stepper) -> str:
    """Why what the step computes is none to compare with, from one more step that is profiled; empty where it is."""
    from gpubench.measure.trace import trace_step

    context = stepper.context
    checks = [toggle.unfit for toggle, _ in toggles_of(context.configuration) if toggle.unfit]
    if not checks:
        return ""
    step = stepper.step if context.mode == "training" else lambda: infer_in_parts(stepper, 0)
    try:
        context.trace = trace_step(step, cuda=context.device.type == "cuda")
    except Exception as error:  # noqa: BLE001 - the checks say that there is no trace
        context.trace_error = f"the profiler failed: {type(error).__name__}: {error}".splitlines()[0]
    return "; ".join(filter(None, (check(context) for check in checks)))


def train(stepper: Stepper, steps: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses of the first `steps` steps and the change of the parameters over them."""
    before = reference.parameters(stepper.context.model)
    return reference.training_steps(stepper, before, [], steps)


def infer_in_parts(stepper: Stepper, index: int) -> dict[str, torch.Tensor]:
    """The outputs for batch `index`, split into as few parts as fit: fp32 may need more memory than was measured."""
    context, parts = stepper.context, 1
    batch = context.batches[index]
    while True:
        try:
            found = []
            for part in zip(*(tensor.chunk(parts) for tensor in batch), strict=True):
                context.batches[index] = part
                stepper.run(index)
                found.append(reference.snapshot(stepper.output))
            return found[0] if len(found) == 1 else reference.join(found)
        except (RuntimeError, MemoryError) as error:
            if parts >= context.batch_size or not limits.is_out_of_memory(error):
                raise
            parts *= 2
        finally:
            context.batches[index] = batch
