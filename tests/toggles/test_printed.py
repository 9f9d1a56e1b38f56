"""The lines that are printed do in a plain script what the worker did: same operators, same compiled frames."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import pytest
import torch
import torch._inductor.compile_fx
from torch import nn
from torch._dynamo.utils import counters

from gpubench.hardware.facts import Environment
from gpubench.hardware.probe import probe_device, probe_environment
from gpubench.measure.trace import Trace, trace_step
from gpubench.report.model import Value
from gpubench.toggles import all_toggles, fp32_flags, usage
from gpubench.toggles.environment import allocator
from gpubench.toggles.printed import expression, run_lines
from gpubench.toggles.toggle import Scope
from gpubench.worker.prepare import apply_toggles, build, make_batches
from gpubench.worker.step import Stepper
from gpubench.workloads.batch import make as make_batch
from gpubench.workloads.describe import describe
from gpubench.workloads.loader import Loaded, load
from gpubench.workloads.workload import Workload, call_model
from gpubench.workloads.workload_facts import CompileTarget

STEPS = 3
AUTOCAST = torch.autocast.__enter__
LIMIT = getattr(torch._dynamo.config, "recompile_limit", 8)
FAST = {"precision": "bf16-autocast", "channels_last": "on", "compile": "default", "threads": 1}
WEIGHTS = FAST | {"precision": "bf16-weights"}


class Seen:
    """What one step did: operators with dtypes, shapes and strides, and the frames compiled until then."""

    def __init__(self, trace: Trace) -> None:
        self.operators = [(each.name, each.dtypes, each.shapes, each.strides) for each in trace.operators]
        self.frames = counters["frames"]["ok"]
        self.graphs = counters["stats"]["unique_graphs"]
        self.threads = torch.get_num_threads()


@contextlib.contextmanager
def eager_backend():
    """Graphs that dynamo makes are run as they are: their operators can be seen, and nothing waits for a compiler."""
    with mock.patch.object(torch._inductor.compile_fx, "compile_fx", lambda model, inputs, **_: model):
        yield


def fresh() -> None:
    torch._dynamo.reset()
    counters.clear()
    torch.set_num_threads(2)


def measured(loaded: Loaded, mode: str, configuration: Mapping[str, Value]) -> Seen:
    """As the worker does it."""
    fresh()
    context = build(loaded, mode, torch.device("cpu"), dict(configuration), seed=0)
    context.facts = describe(loaded, mode)
    apply_toggles(context, make_batches(loaded, context.batch_size, 1, seed=0))
    stepper = Stepper(context)
    for _ in range(STEPS):
        stepper.run(0)
    return Seen(trace_step(lambda: stepper.run(0), cuda=False))


def printed(loaded: Loaded, mode: str, lines: str, batch_size: int) -> Seen:
    """As a user does it: a plain script, and the printed lines before its loop."""
    fresh()
    torch.autocast.__enter__ = AUTOCAST  # a worker's process has one of its own
    torch.manual_seed(0)
    workload = loaded.workload
    if size := re.search(r"^batch_size = (\d+)", lines, re.MULTILINE):
        batch_size = int(size[1])
    model = workload.build().train(mode == "training")
    script: dict[str, Any] = {
        "model": model,
        "inputs": make_batch(workload, batch_size, 1),
        "device": torch.device("cpu"),
        "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=False, fused=False),
        "options": {},
    }
    exec(lines, script)
    optimizer, scaler = script["optimizer"], script.get("scaler")
    autocast = script.get("autocast", contextlib.nullcontext())

    def step() -> None:
        model, inputs = script["model"], tuple(script["inputs"])
        if mode == "inference":
            with torch.no_grad(), autocast:
                script["output"] = workload.infer(model, inputs, script["options"])
            return
        optimizer.zero_grad()
        with autocast:
            loss = workload.loss(model, inputs)
        (scaler.scale(loss) if scaler else loss).backward()
        if scaler:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
        script["loss"] = loss.detach()

    for _ in range(STEPS):
        step()
    return Seen(trace_step(step, cuda=False))


def compare(loaded: Loaded, mode: str, changes: Mapping[str, Value]) -> str:
    """Measures and prints the configuration; the lines, where both did the same."""
    facts = describe(loaded, mode)
    scope = Scope.of(probe_device("cpu"), facts, probe_environment())
    applicable = {name: each for name, each in all_toggles().items() if each.applies(scope) is None}
    baseline = {name: toggle.baseline(scope) for name, toggle in applicable.items()}
    configuration = {**baseline, **{name: value for name, value in changes.items() if name in applicable}}
    lines = usage(configuration, scope)
    here, there = measured(loaded, mode, configuration), printed(loaded, mode, lines, facts.batch_size)
    assert there.operators == here.operators
    assert (there.frames, there.graphs, there.threads) == (here.frames, here.graphs, here.threads)
    return lines


@pytest.mark.parametrize(
    ("name", "parameters", "mode", "changes"),
    [
        ("resnet50", {}, "inference", FAST | {"batch_size": 3}),
        ("resnet50", {}, "inference", WEIGHTS),
        ("resnet50", {}, "training", FAST | {"optimizer": "fused"}),
        ("resnet50", {}, "training", {"precision": "fp16-autocast", "optimizer": "foreach"}),
        ("gpt", {}, "inference", {"compile": "default", "compile_scope": "blocks", "compile_dynamic": "on"}),
        ("vit_mae", {}, "training", {"checkpointing": "selective"}),
        ("unet3d", {}, "inference", WEIGHTS),
        ("unet3d", {}, "training", FAST | {"optimizer": "foreach"}),
        ("unet3d", {"view": "whole"}, "inference", FAST | {"tile_size": 16, "tile_overlap": 8}),
        ("vae", {}, "inference", FAST | {"tile_size": 16}),
        ("vae", {}, "training", WEIGHTS | {"optimizer": "fused"}),
        ("vae", {"task": "decode"}, "inference", {"compile": "max-autotune-no-cudagraphs"}),
    ],
)
def test_the_lines_of_each_workload_do_what_was_measured(
    name: str, parameters: dict[str, str], mode: str, changes: dict[str, Value]
) -> None:
    with eager_backend():
        lines = compare(load(name, "tiny", parameters), mode, changes)
    assert (".compile(" in lines) == ("compile" in changes)


class Outer(nn.Module):
    """Its step calls parts of it and never its forward; one part is of torch's own classes, one has a number."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Sigmoid())
        self.blocks = nn.ModuleList([Inner(), Inner()])
        self.tail = Subclass(nn.Linear(8, 8), nn.Tanh())


class Inner(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x) * 2


class Subclass(nn.Sequential):
    """A class of the user's own whose forward is torch's: dynamo leaves that eager too."""


def parts(model: Outer, batch: Any, options: Any) -> torch.Tensor:
    return model.tail(model.blocks[1](model.encoder(batch[0])))


def loaded(make: Callable[[], nn.Module], infer: Any, targets: tuple[str, ...]) -> Loaded:
    workload = Workload(
        name="outer",
        item="row",
        batch_size=4,
        build=make,
        inputs=lambda count, generator: (torch.randn(count, 8, generator=generator),),
        infer=infer,
        compile_targets=targets,
    )
    return Loaded(workload=workload, reference="outer.py:make", size="default", parameters={}, source_hash="x")


def test_each_target_is_printed_with_the_method_that_compiled_it() -> None:
    with eager_backend():
        lines = compare(loaded(Outer, parts, ("encoder", "blocks.1", "tail")), "inference", {"compile": "default"})
    assert counters["stats"]["unique_graphs"] == 3
    named = [line.partition("(")[0] for line in lines.splitlines()[1:]]
    assert named == [
        "# .compile",
        "model.encoder.forward = torch.compile",
        "model.get_submodule",
        "model.tail.forward = torch.compile",
    ]


def test_with_inductor_itself() -> None:
    compare(loaded(Outer, parts, ("blocks.1",)), "inference", {"compile": "default"})
    assert counters["frames"]["ok"] == 1


def test_a_bare_container_as_the_whole_model() -> None:
    with eager_backend():
        work = loaded(lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU()), call_model, ("",))
        lines = compare(work, "inference", {"compile": "default"})
    assert "model.forward = torch.compile(lambda *args, forward=model.forward, **kwargs:" in lines


def test_many_targets_of_torchs_own_classes_are_all_compiled() -> None:
    def build() -> nn.Module:
        return nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(LIMIT + 2)])

    def infer(model: nn.Module, batch: Any, options: Any) -> torch.Tensor:
        x = batch[0]
        for part in model:
            x = part(x)
        return x

    targets = tuple(str(number) for number in range(LIMIT + 2))
    with eager_backend():
        compare(loaded(build, infer, targets), "inference", {"compile": "default"})
    assert counters["stats"]["unique_graphs"] == LIMIT + 2


def test_a_report_that_does_not_name_the_targets_says_so(kit) -> None:
    lines = usage({"compile": "default"}, kit.scope(compile_targets=None))
    assert "This report does not say which parts were compiled" in lines
    named = kit.scope(compile_targets=[CompileTarget(name="core", forward_module="mine")])
    assert usage({"compile": "default"}, named) == 'model.core.compile(mode="default")'


class Placed(nn.Module):
    """Has weights of four dimensions that no convolution uses."""

    def __init__(self) -> None:
        super().__init__()
        self.convolve = nn.Conv2d(2, 4, 3, padding=1)
        self.place = nn.Parameter(torch.randn(1, 4, 2, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.convolve(x.reshape(-1, 2, 2, 4)[:, :, :2, :4]) + self.place


def test_the_weights_that_were_left_as_they_are_are_named() -> None:
    work = loaded(lambda: Placed(), lambda model, batch, _: model(batch[0].reshape(-1, 2, 2, 4)), ("",))
    lines = compare(work, "inference", {"channels_last": "on"})
    assert "and name not in ['place']:" in lines


@pytest.mark.parametrize("value", ["tuned", "huge-pages", "tuned-huge-pages", "jemalloc"])
def test_the_shell_lines_set_what_the_process_had(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(allocator, "library", lambda value: f"/opt/my libs/lib{value}.so.2")
    wanted = allocator.environment(value)
    script = usage({"allocator": value}) + '\necho "$GLIBC_TUNABLES|$LD_PRELOAD"'
    said = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, env={}).stdout.strip()
    assert said == f"{wanted.get('GLIBC_TUNABLES', '')}|{wanted.get('LD_PRELOAD', '')}"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("", "model"),
        ("a.b", "model.a.b"),
        ("a.0", "model.get_submodule('a.0')"),
        ("a.class", "model.get_submodule('a.class')"),
        ("a'\nimport os", 'model.get_submodule("a\'\\nimport os")'),
    ],
)
def test_a_submodule_as_python(name: str, text: str) -> None:
    assert expression(name) == text


def test_the_scaler_is_for_training_only(kit) -> None:
    def lines(mode: str) -> str:
        return usage({"precision": "fp16-autocast"}, kit.scope(mode=mode))

    assert "GradScaler" in lines("training")
    assert "GradScaler" not in lines("inference")


def test_the_flags_of_a_gpu_are_printed_with_every_precision(kit) -> None:
    for value in all_toggles()["precision"].values:
        lines = all_toggles()["precision"].usage(value, kit.scope(kit.AMPERE))
        assert ("cudnn.allow_tf32" in lines) is (value not in ("as-built", "torch-default"))


@pytest.mark.parametrize("value", ["fp32", "tf32"])
def test_the_printed_flags_permit_tf32_where_the_applied_ones_do(value: str, kit) -> None:
    """Also to the kernels that torch.compile makes, which look at other flags than the libraries."""

    def permitted() -> dict[str, bool]:
        holders = {
            "matmul": torch.backends.cuda.matmul,
            "cudnn": torch.backends.cudnn,
            "conv": torch.backends.cudnn.conv,
        }
        return {name: holder.fp32_precision == "tf32" for name, holder in holders.items()}

    {"fp32": fp32_flags.forbid, "tf32": fp32_flags.permit_tf32}[value]()
    applied = permitted()
    fp32_flags.reset()
    run_lines(all_toggles()["precision"].usage(value, kit.scope(kit.AMPERE)))
    assert permitted() == applied == dict.fromkeys(applied, value == "tf32")


def test_the_scope_of_a_version_that_is_not_understood(kit) -> None:
    environment = Environment(platform="x", python="3.11", torch="from source")
    assert Scope.of(kit.CPU, kit.scope().workload, environment).torch_version == (0, 0)
