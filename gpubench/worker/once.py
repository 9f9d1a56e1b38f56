"""What a worker does without measuring: describe workload and device, or compute the reference outputs."""

from __future__ import annotations

import contextlib
import hashlib
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from gpubench.measure.values import rounding_of
from gpubench.text import encodable
from gpubench.worker import limits, reference
from gpubench.worker.fallbacks import Way, first_that_fits, ways
from gpubench.worker.fill import Filled
from gpubench.worker.messages import Describe, MakeReference, Module, ProbeResult, ReferenceMade, importing
from gpubench.worker.prepare import apply_toggles, build, load_choice, make_batches, seed_everything, use_device
from gpubench.worker.step import Stepper
from gpubench.workloads.catalog import resolve_size

if TYPE_CHECKING:
    import torch

    from gpubench.measure.values import Rounding

NUDGE = 1e-6  # relative; one rounding in fp32 is off by up to 6e-8, and a network makes hundreds in a row


def describe(request: Describe, tell: Callable[[str], None] = lambda _: None) -> ProbeResult:
    """The facts of workload, device and software, found in this process; `tell` is called with what takes time."""
    import torch

    from gpubench.hardware.probe import cuda_problem, probe_device, probe_environment
    from gpubench.workloads.describe import describe as facts_of

    choice, device = request.choice, probe_device(request.device)
    unusable = request.device == "auto" and device.kind == "cpu" and torch.cuda.is_available()
    memory = [known for known in (device.total_memory_bytes, request.max_memory_bytes) if known is not None]
    size = resolve_size(choice.reference, choice.size, device.kind, min(memory, default=None))
    tell(importing(choice.reference))
    loaded, mode = load_choice(msgspec.structs.replace(choice, size=size))
    tell("building the model")
    return ProbeResult(
        workload=facts_of(loaded, mode, request.batch_size),
        device=device,
        environment=probe_environment(),
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
    """Runs the plain fp32 model on the same inputs and stores its outputs and how much they vary by chance."""
    device = use_device(request.device)
    if request.protocol.max_memory_bytes and device.type == "cpu":
        limits.limit_memory(device, request.protocol.max_memory_bytes)
    loaded, mode = load_choice(request.choice)
    folder, seed = Path(request.folder), request.protocol.seed

    def plain(way: Way) -> tuple[Stepper, Filled]:
        context = build(loaded, mode, way.device, request.configuration, seed)
        filled = Filled(context.model, seed)
        apply_toggles(context, make_batches(loaded, context.batch_size, request.protocol.input_batches, seed))
        return Stepper(context), filled

    def make(way: Way) -> None:
        stepper, filled = plain(way)
        if mode == "training":
            steps = request.protocol.quality_steps
            losses, update = train(stepper, steps)
            del stepper, filled  # or the device would have to hold two models, with their optimizers' state
            stepper, _ = plain(way)
            seed_everything(seed + 1)  # same weights and inputs; only random numbers drawn in the step (dropout) differ
            again, _ = train(stepper, steps)
            reference.save_training(folder, losses, update, reference.loss_spread(losses, again))
        else:
            outputs = every_batch(stepper)
            seed_everything(seed + 1)
            again_first = infer_in_parts(stepper, 0)
            spread = reference.output_spread(outputs[0], again_first)
            reference.save_inference(
                folder,
                outputs,
                spread,
                left_out=reference.left_out(stepper.output),
                timed=unfilled(stepper, filled),
                rounding=rounding(stepper, outputs) if spread <= reference.RANDOM else None,
            )

    choices = ways(device, mode)
    way = first_that_fits(choices, make)
    if way is choices[0]:
        return ReferenceMade()
    reference.save_place(folder, way.where)
    return ReferenceMade(way.where)


def train(stepper: Stepper, steps: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses of the first `steps` steps and the change of the parameters over them."""
    before = reference.parameters(stepper.context.model)
    return reference.training_steps(stepper, before, [], steps)


def every_batch(stepper: Stepper) -> list[dict[str, torch.Tensor]]:
    """The outputs for each batch."""
    return [infer_in_parts(stepper, index) for index in range(len(stepper.context.batches))]


def unfilled(stepper: Stepper, filled: Filled) -> list[dict[str, torch.Tensor]] | None:
    """The outputs with the model's own parameters, as they will be timed; None where none is filled."""
    if not filled.names:
        return None
    filled.restore()
    outputs = every_batch(stepper)
    filled.fill()
    return outputs


def rounding(stepper: Stepper, plain: list[dict[str, torch.Tensor]]) -> dict[str, Rounding]:
    """What rounding of weights and inputs changes in the outputs `plain` of each batch; spoils weights and inputs."""
    import torch

    context, chance = stepper.context, torch.Generator().manual_seed(0)

    def nudge(tensor: torch.Tensor) -> torch.Tensor:
        return tensor * (1 + NUDGE * torch.randn(tensor.shape, generator=chance).to(tensor))

    def change(how: Callable[[torch.Tensor], torch.Tensor]) -> None:
        with torch.no_grad():
            for parameter in context.model.parameters():
                if parameter.is_floating_point():
                    parameter.copy_(how(parameter))
            context.batches = [
                tuple(how(each).to(each) if each.is_floating_point() else each for each in batch)
                for batch in context.batches
            ]

    try:
        change(nudge)
        near = infer_in_parts(stepper, 0)
        change(lambda tensor: tensor.bfloat16())
        return rounding_of(plain, near, every_batch(stepper), context.workload.compare)
    except Exception:  # noqa: BLE001 - whatever a model refuses; outputs are then held to the tolerance alone
        traceback.print_exc()
        return {}


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
