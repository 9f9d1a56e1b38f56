from __future__ import annotations

import contextlib
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gpubench.toggles.compilation.compile import COMPILE
from gpubench.toggles.compilation.cuda_graph import CUDA_GRAPH
from gpubench.toggles.training.optimizer import OPTIMIZER
from gpubench.worker.step import Stepper
from gpubench.workloads.optimizing import Optimizer


class Recording(TorchDispatchMode):
    """Stands for a CUDA graph: what the operators inside do does not last, and `replay` runs them once more."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.changed, self.replays = [], {}, 0

    def __enter__(self):
        self.random = torch.get_rng_state()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        torch.set_rng_state(self.random)
        with torch.no_grad():
            for tensor, before in self.changed.values():
                tensor.copy_(before)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.is_mutable or "batch_norm" in str(func):  # whose schema hides what it does to statistics
            for each in tree_leaves(args):
                if isinstance(each, torch.Tensor) and each.data_ptr() not in self.changed:
                    self.changed[each.data_ptr()] = each, each.detach().clone()
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, tree_leaves(result)))
        return result

    def replay(self):
        self.replays += 1
        with torch.no_grad():
            for func, args, kwargs, results in self.calls:
                for old, new in zip(results, tree_leaves(func(*args, **kwargs)), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


@pytest.fixture
def cuda(monkeypatch):
    """What torch.cuda has for graphs, on the CPU."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    fork = torch.random.fork_rng
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: fork(devices=[]))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recording)
    monkeypatch.setattr(torch.cuda, "graph", lambda recording: recording)


def batches(kit, context, count=2):
    """`count` batches, of the same shape."""
    return [
        tuple(context.workload.inputs(context.batch_size, torch.Generator().manual_seed(seed))) for seed in range(count)
    ]


def steps(kit, value, work, configuration=None, mode="inference", count=5):
    """The context after some steps on two batches in turn, and what each of them gave."""
    context = kit.prepare({"cuda_graph": value, **(configuration or {})}, work, mode=mode)
    context.batches = batches(kit, context)
    torch.manual_seed(7)
    stepper, found = Stepper(context), []
    for _ in range(count):
        stepper.step()
        found.append((stepper.loss if mode == "training" else stepper.output).detach().clone())
    return context, torch.stack(found)


def graph(context):
    """The only recorded graph."""
    (_, recording, _), *others = context.notes["cuda_graph.graphed"].graphs.values()
    assert not others
    return recording


def test_replayed_outputs_are_those_of_their_inputs(kit, cuda):
    (_, plain), (context, graphed) = (steps(kit, value, kit.workload()) for value in ("off", "on"))
    torch.testing.assert_close(graphed, plain)
    assert not torch.equal(plain[0], plain[1])
    assert graph(context).replays == 5


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(nn.functional.dropout(self.norm(self.body(x)).mean((2, 3)), 0.3, self.training))


UPDATES = {
    "AdamW": Optimizer(settings={"lr": 0.01}),
    "clipped": Optimizer(settings={"lr": 0.01}, clip=0.1),
    "SGD": Optimizer(kind="SGD", settings={"lr": 0.1, "momentum": 0.9}),
    "scheduled": Optimizer(
        settings={"lr": 0.01}, schedule=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2)
    ),
    "Adagrad": Optimizer(kind="Adagrad", settings={"lr": 0.01}),
}


@pytest.mark.parametrize("name", UPDATES)
def test_replayed_training_is_the_same_training(kit, cuda, name):
    work = kit.workload(Dropping, optimizers={"optimizer": UPDATES[name]})
    found = [steps(kit, value, work, {"optimizer": "fused"}, "training") for value in ("off", "on")]
    (plain, expected), (context, losses) = found
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(dict(context.model.state_dict()), dict(plain.model.state_dict()))
    context.trace = kit.trace(["aten::copy_"], graph=True)
    proof = CUDA_GRAPH.evidence(context, "on")
    whole = name not in ("scheduled", "Adagrad")
    groups = context.optimizers["optimizer"].param_groups
    assert all(group.get("capturable", whole) is whole for group in groups if name != "Adagrad")
    recorded = "the forward and the backward pass" + (" and the update" if whole else "")
    assert (proof.took_effect, proof.detail) == (
        True,
        f"the step launched 1 CUDA graph; 1 graph of {recorded} recorded",
    )
    assert graph(context).replays == 5


def test_a_gradient_scaler_stays_outside(kit, cuda):
    configuration = {"optimizer": "fused", "precision": "fp16-autocast"}
    (_, expected), (context, losses) = (
        steps(kit, value, kit.workload(Dropping), configuration, "training") for value in ("off", "on")
    )
    torch.testing.assert_close(losses, expected)
    context.trace = kit.trace(["aten::copy_"], graph=True)
    assert CUDA_GRAPH.evidence(context, "on").detail.endswith("of the forward and the backward pass recorded")


def test_inputs_of_another_shape_are_recorded_for_themselves(kit, cuda):
    context, _ = steps(kit, "on", kit.workload(), count=2)
    context.batches = [tuple(each[:1] for each in batch) for batch in context.batches]
    Stepper(context).run(0)
    assert len(context.notes["cuda_graph.graphed"].graphs) == 2


def test_an_apply_that_does_nothing_is_caught(kit):
    context = kit.prepare({"cuda_graph": "off"})
    for launched in (False, True):
        context.trace = kit.trace(["aten::mm"], ["some kernel"], graph=launched)
        proof = CUDA_GRAPH.evidence(context, "on")
        assert proof.took_effect is False
        assert proof.detail.endswith("; none was recorded")
        assert CUDA_GRAPH.evidence(context, "off").took_effect is True


def test_a_graph_that_no_step_launches_is_caught(kit, cuda):
    context, _ = steps(kit, "on", kit.workload())
    context.trace = kit.trace(["aten::mm"], ["some kernel"])
    assert CUDA_GRAPH.evidence(context, "on").took_effect is False
    context.device, context.trace = torch.device("cuda"), kit.trace(["aten::mm"])  # no record of a GPU at all
    assert CUDA_GRAPH.evidence(context, "on").took_effect is None
    context.trace = None
    assert CUDA_GRAPH.evidence(context, "on").took_effect is None


def test_what_cannot_run_has_its_sentence(kit):
    assert CUDA_GRAPH.applies(kit.scope()) == "CUDA graphs need a CUDA device, this is A CPU"
    scope = kit.scope(kit.AMPERE)
    assert CUDA_GRAPH.applies(scope) is None
    assert CUDA_GRAPH.unmet(scope, "on", {"compile": "default"}) is None
    assert CUDA_GRAPH.unmet(scope, "on", {"compile": "reduce-overhead"}) == (
        "cannot be combined with compile=reduce-overhead: that mode has CUDA graphs of its own, which cannot be "
        "recorded in another"
    )
    assert CUDA_GRAPH.unmet(kit.scope(kit.AMPERE, mode="training", own_train_step=True), "on") == (
        "records no train_step of the workload's own, which may decide on the host what it does"
    )


def test_the_printed_lines_record_and_replay(kit, cuda):
    model, inputs = kit.Net().eval(), (torch.randn(2, 4, 8, 8),)
    names = {"torch": torch, "model": model}
    exec(CUDA_GRAPH.usage("on", kit.scope(kit.AMPERE)), names)
    with torch.no_grad():
        torch.testing.assert_close(names["graphed"](inputs), model(*inputs))
    assert "loss.backward()" in CUDA_GRAPH.usage("on", kit.scope(kit.AMPERE, mode="training"))


@pytest.mark.parametrize(
    ("value", "kernels", "took_effect"),
    [
        ("fused", ["multi_tensor_apply_kernel<..FusedAdamMathFunctor>", "multi_tensor_apply_kernel<>"], True),
        ("fused", ["multi_tensor_apply_kernel<>"], False),
        ("foreach", ["multi_tensor_apply_kernel<>"], True),
        ("foreach", ["multi_tensor_apply_kernel<..FusedAdamMathFunctor>", "multi_tensor_apply_kernel<>"], False),
        ("foreach", ["vectorized_elementwise_kernel"], False),
        ("for-loop", ["vectorized_elementwise_kernel"], True),
        ("for-loop", ["multi_tensor_apply_kernel<>"], None),
        ("fused", [], None),
    ],
)
def test_beside_it_kernels_tell_of_the_optimizer(kit, value, kernels, took_effect):
    context = kit.prepare({"optimizer": value}, mode="training")
    context.device, context.trace = torch.device("cuda"), kit.trace(["aten::copy_"], kernels, graph=True)
    assert OPTIMIZER.evidence(context, value).took_effect is took_effect


@pytest.mark.parametrize(("kernel", "took_effect"), [("triton_poi_fused_add_0", True), ("ampere_sgemm", None)])
def test_beside_it_kernels_tell_of_compiled_code(kit, monkeypatch, kernel, took_effect):
    from gpubench.toggles import dynamo_records

    monkeypatch.setattr(dynamo_records, "frames_of", lambda context: (1, 1))
    context = kit.prepare({"compile": "off"})
    context.trace = kit.trace(["aten::copy_"], [kernel], graph=True)
    assert COMPILE.evidence(context, "default").took_effect is took_effect
    context.trace = dataclasses.replace(context.trace, names=frozenset())
    assert COMPILE.evidence(context, "default").took_effect is False
