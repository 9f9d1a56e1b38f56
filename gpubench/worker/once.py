"""What a worker does once and without measuring: look at the workload and the device, or make the reference."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from gpubench.worker import reference
from gpubench.worker.messages import Describe, Described, MakeReference, ReferenceMade
from gpubench.worker.prepare import apply_toggles, build, load_choice, make_batches, use_device
from gpubench.worker.step import Stepper
from gpubench.workloads.catalog import resolve_size


def describe(request: Describe) -> Described:
    """The facts of workload, device and software, found in this process."""
    from gpubench.hardware.probe import choose_device, probe_device, probe_environment
    from gpubench.workloads.describe import describe as facts_of

    device = choose_device(request.device)
    choice = request.choice
    size = resolve_size(choice.reference, choice.size, device.partition(":")[0])
    loaded, mode = load_choice(msgspec.structs.replace(choice, size=size))
    return Described(
        workload=facts_of(loaded, mode, request.batch_size),
        device=probe_device(device),
        environment=probe_environment(),
    )


def make_reference(request: MakeReference) -> ReferenceMade:
    """Runs the plain fp32 model on the same inputs and keeps what it gives."""
    started = time.monotonic()
    device = use_device(request.device)
    loaded, mode = load_choice(request.choice)
    subject = build(loaded, mode, device, request.configuration, request.protocol.seed)
    batches = make_batches(loaded, subject.batch_size, request.protocol.input_batches, request.protocol.seed)
    apply_toggles(subject, batches)
    stepper = Stepper(subject)
    folder = Path(request.folder)
    if mode == "training":
        before = reference.parameters(subject.model)
        losses, update = reference.training_steps(stepper, before, 0, request.protocol.quality_steps, [])
        reference.save_training(folder, losses, update)
    else:
        outputs = []
        for index in range(len(subject.batches)):
            stepper.run(index)
            outputs.append(reference.snapshot(stepper.output))
        reference.save_inference(folder, outputs)
    return ReferenceMade(time.monotonic() - started)
