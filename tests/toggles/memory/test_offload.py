"""On a CPU nothing is copied, so that what moves is followed by the calls that move it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from gpubench.measure.trace import Kernel, Trace
from gpubench.toggles.memory import offload
from gpubench.toggles.memory.offload import OFFLOAD
from gpubench.toggles.printed import run_lines
from gpubench.toggles.toggle import in_force
from gpubench.workloads.blocks import blocks
from gpubench.workloads.describe import compile_targets

COPY = "Memcpy HtoD (Pinned -> Device)"


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("bias", torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.relu(self.linear(x)) * self.bias


class Coder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Pair(nn.Module):
    """Images [B, 4, H, W] -> [B, 3], through two stages, of which the second is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.head = Coder(), Coder(), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.decoder(self.decoder(self.encoder(x.flatten(2).mean(2)))))


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of elements of what is pinned to be copied, in order."""
    found: list[int] = []

    def pinned(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor.numel())
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned)
    return found


def work(kit: Any) -> Any:
    return kit.workload(Pair, stages=("encoder", "decoder"))


@pytest.mark.parametrize(("value", "copies"), [("off", 0), ("stages", 8), ("layers", 12)])
def test_weights_are_brought_when_they_are_needed_and_put_back(kit, moves, value, copies, monkeypatch):
    known: dict[str, Any] = {}

    def run(lines: str, **names: Any) -> dict[str, Any]:
        known.update(run_lines(lines, **names))
        return known

    monkeypatch.setattr(offload, "run_lines", run)
    plain = kit.prepare({"offload": "off"}, work(kit))
    context = kit.prepare({"offload": value}, work(kit))
    moves.clear()
    with torch.no_grad():
        expected = plain.step.forward(plain.batches[0])
        for _ in range(2):  # the second step brings them anew
            moves.clear()
            torch.testing.assert_close(context.step.forward(context.batches[0]), expected)
            assert len(moves) == copies
            assert not known.get("on_host")
    state = context.model.state_dict()
    assert all(torch.equal(state[name], weight) for name, weight in plain.model.state_dict().items())


def printed(kit: Any, value: str, model: nn.Module) -> dict[str, Any]:
    """What is known after the printed lines have run on `model`."""
    targets = compile_targets(model, blocks(model))
    scope = kit.scope(kit.AMPERE, stages=["encoder", "decoder"], blocks=4, block_targets=targets)
    return run_lines(OFFLOAD.usage(value, scope), model=model, device=torch.device("cpu"))


@pytest.mark.parametrize("value", ["stages", "layers"])
def test_the_printed_lines_keep_one_part_at_a_time_there(kit, moves, value):
    model, seen = Pair(), []
    known = printed(kit, value, model)

    def look(module: nn.Module, _: Any) -> None:
        there = [name for name, weight in model.named_parameters() if weight in known["on_host"]]
        seen.append((names[module], sorted({name.rpartition(".linear")[0] for name in there})))

    names = {block: name for name, block in blocks(model).items()}
    for block in names:
        block.register_forward_pre_hook(look)
    with torch.no_grad():
        model(torch.randn(2, 4, 3, 3))
    first, second = ([f"{stage}.blocks.{index}" for index in range(2)] for stage in ("encoder", "decoder"))
    assert [name for name, _ in seen] == [*first, *second, *second]
    for name, there in seen:
        stage = name.split(".", maxsplit=1)[0]
        assert there == ([f"{stage}.blocks.0", f"{stage}.blocks.1"] if value == "stages" else [name])
    assert bool(known["on_host"]) is (value == "stages")
    known["put_back"]()
    assert not known["on_host"]


def test_what_another_toggle_made_of_the_weights_is_what_is_brought(kit, moves):
    configuration = {"offload": "layers", "precision": "bf16-weights"}
    context = kit.prepare(configuration, work(kit))
    with torch.no_grad():
        output = context.step.forward(context.batches[0])
    assert output.dtype == torch.bfloat16
    assert {weight.dtype for weight in context.model.parameters()} == {torch.bfloat16}


def on_gpu(context: Any, *copies: str) -> None:
    context.device = torch.device("cuda")
    context.trace = Trace(operators=(), kernels=(Kernel("gemm", 1e-6),), names=frozenset({"gemm"}), copies=copies)


@pytest.mark.parametrize("value", ["stages", "layers"])
def test_evidence_on_a_gpu(kit, moves, value):
    context = kit.prepare({"offload": value}, work(kit))
    on_gpu(context, *[COPY] * 8)
    proof = OFFLOAD.evidence(context, value)
    assert proof.took_effect is True
    assert proof.detail == "8 of 8 weights are in the host's memory between steps; the step made 8 copies to the device"
    on_gpu(context)
    assert OFFLOAD.evidence(context, value).took_effect is False
    context.trace = dataclasses.replace(context.trace, kernels=(), names=frozenset({"aten::mm"}), copies=())
    context.trace = dataclasses.replace(context.trace, operators=kit.trace(["aten::mm"]).operators)
    assert OFFLOAD.evidence(context, value).took_effect is None  # the profiler saw nothing of the GPU


@pytest.mark.parametrize("value", ["stages", "layers"])
def test_an_apply_that_does_nothing_is_caught(kit, value):
    idle = dataclasses.replace(OFFLOAD, apply=in_force)
    context = kit.prepare({"offload": value}, work(kit), replace={"offload": idle})
    context.model.to("meta")  # stands for the GPU
    on_gpu(context, COPY)
    proof = OFFLOAD.evidence(context, value)
    assert proof.took_effect is False
    assert proof.detail.startswith("0 of 8 weights are in the host's memory")


def test_a_model_on_the_gpu_is_the_baseline(kit):
    context = kit.prepare({"offload": "off"}, work(kit))
    on_gpu(context)
    assert OFFLOAD.evidence(context, "off").took_effect is True


def test_where_it_cannot_be(kit):
    staged = {"stages": ["encoder", "decoder"], "blocks": 4}
    assert OFFLOAD.applies(kit.scope(**staged)) == "all weights are in the host's memory on A CPU"
    assert OFFLOAD.applies(kit.scope(kit.AMPERE)) == "workload net has neither stages nor repeated blocks"
    scope = kit.scope(kit.AMPERE, **staged)
    assert OFFLOAD.applies(scope) is None
    for value in ("stages", "layers"):
        assert OFFLOAD.unmet(scope, value) is None
        assert OFFLOAD.unmet(kit.scope(kit.AMPERE, mode="training", **staged), value) == (
            "is for inference only; in training a backward pass needs the weights once more"
        )
        assert OFFLOAD.unmet(scope, value, {"compile": "reduce-overhead"}) == (
            "cannot be combined with compile=reduce-overhead: "
            "a CUDA graph replays with the weights where they were when it was captured"
        )
        assert OFFLOAD.unmet(scope, value, {"compile": "default"}) is None
    assert (OFFLOAD.unmet(kit.scope(kit.AMPERE, blocks=4), "stages") or "").startswith("needs a workload that names")
    assert (OFFLOAD.unmet(kit.scope(kit.AMPERE, stages=["a"]), "layers") or "").startswith("needs a model with")


@pytest.mark.slow
@pytest.mark.parametrize(("value", "scope"), [("stages", "targets"), ("layers", "blocks"), ("layers", "targets")])
def test_beside_compiled_code_the_outputs_stay_right(kit, moves, value, scope):
    plain = kit.prepare({"offload": "off"}, work(kit))
    context = kit.prepare({"offload": value, "compile": "default", "compile_scope": scope}, work(kit))
    with torch.no_grad():
        expected = plain.step.forward(plain.batches[0])
        for _ in range(3):
            torch.testing.assert_close(context.step.forward(context.batches[0]), expected)
