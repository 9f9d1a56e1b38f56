"""Tiny real models, prepared and stepped as the worker does it, and the trace of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import pytest
import torch
import torch._dynamo
from torch import nn
from torch._dynamo.utils import counters

from gpubench.hardware.facts import Device
from gpubench.measure.trace import Kernel, Operator, Trace, trace_step
from gpubench.report.model import Value
from gpubench.toggles import all_toggles
from gpubench.toggles.model_context import ModelContext
from gpubench.toggles.toggle import Scope, Toggle
from gpubench.worker.prepare import apply_toggles
from gpubench.worker.step import Stepper
from gpubench.workloads.batch import make as make_batch
from gpubench.workloads.workload import Tiling, Workload
from gpubench.workloads.workload_facts import WorkloadFacts

CPU = Device(
    kind="cpu",
    name="A CPU",
    cores=8,
    physical_cores=4,
    fast_dtypes=["float32", "bfloat16"],
    instruction_sets=["avx512_bf16"],
)
AMPERE = Device(
    kind="cuda",
    name="NVIDIA A100",
    compute_capability=[8, 0],
    fast_dtypes=["float32", "tf32", "bfloat16", "float16"],
)
TURING = Device(kind="cuda", name="NVIDIA T4", compute_capability=[7, 5], fast_dtypes=["float32", "float16"])


class Net(nn.Module):
    """Two convolutions and a linear layer; `[B, 4, *S]` -> `[B, 3]`."""

    def __init__(self, dimensions: int = 2) -> None:
        super().__init__()
        convolution = nn.Conv3d if dimensions == 3 else nn.Conv2d
        self.body = nn.Sequential(
            convolution(4, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(), convolution(8, 8, 3, padding=1)
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).flatten(2).mean(2))


def images(dimensions: int = 2, side: int = 8) -> Callable[[int, torch.Generator], tuple[torch.Tensor, torch.Tensor]]:
    """Inputs: an image `[B, 4, *S]` and a label `[B]`."""

    def make(batch_size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        image = torch.randn(batch_size, 4, *[side] * dimensions, generator=generator)
        return image, torch.randint(0, 3, (batch_size,), generator=generator)

    return make


def infer(model: nn.Module, batch: Any, options: Any) -> torch.Tensor:
    return model(batch[0])


def loss(model: nn.Module, batch: Any) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]).float(), batch[1])


def workload(build: Callable[[], nn.Module] = Net, **changes: Any) -> Workload:
    parts: dict[str, Any] = {"batch_size": 2, "inputs": images(), "infer": infer, "loss": loss}
    return Workload(name="net", item="image", build=build, **(parts | changes))


def step(context: ModelContext) -> None:
    """One step on the first batch, as the worker does it."""
    Stepper(context).run(0)


def prepare(
    configuration: dict[str, Value],
    work: Workload | None = None,
    mode: str = "inference",
    device: str = "cpu",
    replace: dict[str, Toggle] | None = None,
    facts: WorkloadFacts | None = None,
) -> ModelContext:
    """A context with the toggles applied; `replace` puts faulty ones in the place of some."""
    work = work or workload()
    torch.manual_seed(0)
    if mode == "training":
        configuration = {"optimizer": "for-loop", **configuration}
    batch_size = int(configuration.get("batch_size", work.batch_size))
    context = ModelContext(
        workload=work,
        mode=mode,
        device=torch.device(device),
        batch_size=batch_size,
        configuration=configuration,
        model=work.build().train(mode == "training"),
        facts=facts,
    )
    batch = tuple(make_batch(work, batch_size, 1))
    with mock.patch.dict(all_toggles(), replace or {}):
        apply_toggles(context, [batch])
    return context


def run(configuration: dict[str, Value], work: Workload | None = None, **how: Any) -> ModelContext:
    """A prepared context after a few steps, with the trace of one more."""
    context = prepare(configuration, work, **how)
    for _ in range(4):  # CUDA graphs replay from the third or fourth call on
        step(context)
    trace_again(context)
    return context


def trace_again(context: ModelContext) -> None:
    """Takes the trace of one more step."""
    context.trace = trace_step(lambda: step(context), cuda=context.device.type == "cuda")


def trace(
    operators: Sequence[str | tuple[str, str]] = (),
    kernels: Sequence[str | tuple[str, float]] = (),
    *,
    graph: bool = False,
) -> Trace:
    """A trace as a GPU gives it: operators by name (and dtype), kernels by name (and seconds)."""
    named = [each if isinstance(each, tuple) else (each, "float") for each in operators]
    timed = [each if isinstance(each, tuple) else (each, 1e-6) for each in kernels]
    return Trace(
        operators=tuple(Operator(name=name, dtypes=(dtype,), shapes=((),), strides=((),)) for name, dtype in named),
        kernels=tuple(Kernel(name, seconds) for name, seconds in timed),
        names=frozenset({"cudaGraphLaunch"} if graph else ()),
    )


def facts(**changes: Any) -> WorkloadFacts:
    parts: dict[str, Any] = {
        "reference": "net",
        "name": "net",
        "item": "image",
        "mode": "inference",
        "modes": ["inference", "training"],
        "size": "tiny",
        "parameters": {},
        "batch_size": 2,
        "parameter_count": 1,
        "input_shapes": [[2, 4, 8, 8]],
        "convolution_dimensions": [2],
    }
    return WorkloadFacts(**(parts | changes))


def scope(device: Device = CPU, torch_version: tuple[int, int] = (2, 13), **changes: Any) -> Scope:
    return Scope(device=device, workload=facts(**changes), torch_version=torch_version)


@pytest.fixture(autouse=True)
def clean_process() -> Iterator[None]:
    """What a fresh process would have: no compiled code, torch's own flags and threads."""
    threads = torch.get_num_threads()
    torch._dynamo.reset()
    counters.clear()
    yield
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False


class Kit:
    """What the tests of this folder share."""

    CPU, AMPERE, TURING = CPU, AMPERE, TURING
    Net, Tiling = Net, Tiling
    images = staticmethod(images)
    workload = staticmethod(workload)
    prepare = staticmethod(prepare)
    run = staticmethod(run)
    step = staticmethod(step)
    trace = staticmethod(trace)
    trace_again = staticmethod(trace_again)
    scope = staticmethod(scope)
    facts = staticmethod(facts)


@pytest.fixture
def kit() -> type[Kit]:
    return Kit
