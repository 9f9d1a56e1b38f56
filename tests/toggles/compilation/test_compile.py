from __future__ import annotations

import dataclasses
import logging
import re

import pytest
import torch
import torch._dynamo
import torch._inductor.utils
from torch import nn
from torch._dynamo.utils import counters

from gpubench.measure.trace import trace_step
from gpubench.toggles import dynamo_records as records
from gpubench.toggles.compilation import compile
from gpubench.toggles.compilation.compile import COMPILE
from gpubench.toggles.toggle import EvidenceResult
from gpubench.worker.reference import parameters

# Its name until 2.6, and since.
LIMIT = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
TUNED = "max-autotune-no-cudagraphs"
DO_NOTHING = dataclasses.replace(COMPILE, apply=lambda context, value: None)


class Small(nn.Module):
    """Compiles fast: one elementwise kernel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x) * 2


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_default_compiles(kit, mode):
    context = kit.run({"compile": "default"}, mode=mode)
    assert COMPILE.evidence(context, "default") == EvidenceResult(
        took_effect=True,
        detail="1 frame compiled to 1 graph; no graph break",
        graph_breaks=0,
        frames_compiled=1,
        recompiles=0,
    )


class Product(nn.Module):
    """A matrix product for which inductor has two kernels on a CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.bmm(x[:, 0], x[:, 1])


def autotuned(kit, build, tmp_path, monkeypatch):
    """What the mode proves with an empty compile cache, and in a second process with that one."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    for _ in range(2):
        torch._dynamo.reset()
        counters.clear()
        yield COMPILE.evidence(kit.run({"compile": TUNED}, kit.workload(build)), TUNED)


@pytest.mark.slow
def test_max_autotune_shows_that_alternatives_were_benchmarked(kit, tmp_path, monkeypatch):
    cold, warm = autotuned(kit, Product, tmp_path, monkeypatch)
    assert cold.took_effect is True
    assert "inductor benchmarked the alternatives of 1 operator" in cold.detail
    assert warm.took_effect is True, warm.detail  # the cache keeps the count, or else it came from there


def test_max_autotune_that_found_nothing_to_choose_is_caught(kit, tmp_path, monkeypatch):
    cold, _ = autotuned(kit, Small, tmp_path, monkeypatch)
    assert cold.took_effect is False
    assert "inductor benchmarked no alternatives of any operator" in cold.detail


@pytest.mark.parametrize(
    ("big", "counted", "trace", "took_effect", "words"),
    [
        (True, {"select_algorithm_autotune": 5}, {"operators": ["aten::mm"]}, True, "the alternatives of 5 operators"),
        (True, {}, {"operators": ["aten::mm"]}, False, "benchmarked no alternatives"),
        (True, {}, {"kernels": ["triton_poi_fused_0"]}, None, "no convolution or matrix product"),
        (False, {}, {"operators": ["aten::mm"]}, False, "too few SMs"),
        (False, {"fxgraph_cache_hit": 1}, {"operators": ["aten::mm"]}, False, "too few SMs"),
        (True, {"fxgraph_cache_hit": 1}, {"operators": ["aten::mm"]}, True, "filled the compile cache"),
        (
            True,
            {"fxgraph_cache_hit": 1, "fxgraph_cache_miss": 1},
            {"operators": ["aten::mm"]},
            False,
            "no alternatives",
        ),
    ],
)
def test_max_autotune_on_a_gpu(kit, monkeypatch, big, counted, trace, took_effect, words):
    context = kit.prepare({"compile": "off"}, kit.workload(Small))
    context.device = torch.device("cuda")
    monkeypatch.setattr(torch._inductor.utils, "is_big_gpu", lambda _: big)
    ran = EvidenceResult(True, "compiled")
    proof = compile._benchmarked(context, {"inductor": counted}, kit.trace(**trace), ran)
    assert (proof.took_effect, proof.detail.startswith("compiled; ")) == (took_effect, True)
    assert words in proof.detail
    without_graph = compile._benchmarked(
        context, {"inductor": counted}, kit.trace(**trace), EvidenceResult(False, "no CUDA graph")
    )
    assert without_graph.took_effect is False


@pytest.mark.parametrize("build", [lambda: nn.Sequential(nn.Conv2d(4, 2, 3), nn.ReLU()), nn.ReLU])
def test_torchs_own_modules_are_compiled_although_dynamo_skips_their_frames(kit, build):
    context = kit.run({"compile": "default"}, kit.workload(build))
    assert COMPILE.evidence(context, "default").took_effect is True


def test_a_bare_sequential_compiled_in_place_runs_eager_and_is_caught(kit):
    plain = dataclasses.replace(COMPILE, apply=lambda context, value: context.model.compile())
    work = kit.workload(lambda: nn.Sequential(nn.ReLU()))
    context = kit.run({"compile": "default"}, work, replace={"compile": plain})
    assert COMPILE.evidence(context, "default").took_effect is False


def test_each_target_is_compiled_by_itself(kit):
    work = kit.workload(compile_targets=("body", "head"))
    context = kit.run({"compile": "default"}, work)
    assert COMPILE.evidence(context, "default").detail == "2 frames compiled to 2 graphs; no graph break"


def test_an_apply_that_does_nothing_is_caught(kit):
    context = kit.run({"compile": "default"}, replace={"compile": DO_NOTHING})
    assert COMPILE.evidence(context, "default") == EvidenceResult(
        took_effect=False,
        detail="dynamo compiled 0 of 0 frames: the step ran eagerly; "
        "if the step calls only parts of the model, name those: Workload(..., compile_targets=(...))",
    )


def test_off_compiles_nothing(kit):
    context = kit.run({"compile": "off"})
    assert COMPILE.evidence(context, "off") == EvidenceResult(took_effect=True, detail="dynamo compiled no frame")


def test_off_that_compiled_is_caught(kit):
    always = dataclasses.replace(COMPILE, apply=lambda context, value: COMPILE.apply(context, "default"))
    context = kit.run({"compile": "off"}, kit.workload(Small), replace={"compile": always})
    assert COMPILE.evidence(context, "off") == EvidenceResult(
        took_effect=False,
        detail="compiled code ran in the step",
        graph_breaks=0,
        frames_compiled=1,
        recompiles=0,
    )


class Wrapping(nn.Module):
    """Calls a part of itself that it has compiled, as a function or as a module."""

    def __init__(self, function: bool) -> None:
        super().__init__()
        self.body = Small() if function else torch.compile(Small())
        self.call = torch.compile(self.body.forward) if function else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.call(x) if self.call else self.body(x)


def compiled_in_place() -> nn.Module:
    model = Small()
    model.compile()
    return model


OWN = {
    "the whole": lambda: torch.compile(Small()),
    "in place": compiled_in_place,
    "a part": lambda: Wrapping(function=False),
    "a function": lambda: Wrapping(function=True),
}


@pytest.mark.parametrize("build", OWN.values(), ids=OWN)
def test_a_workload_that_compiles_itself_is_a_baseline_of_its_own(kit, build):
    facts, work = kit.facts(compiles_itself=True), kit.workload(build)
    proof = COMPILE.evidence(kit.run({"compile": "as-built"}, work, facts=facts), "as-built")
    assert (proof.took_effect, proof.name, proof.graph_breaks) == (True, "as built: compiled", 0)
    torch._dynamo.reset()  # each has a process of its own in a run
    assert COMPILE.evidence(kit.run({"compile": "default"}, work, facts=facts), "default").took_effect is True
    torch._dynamo.reset()
    eager = COMPILE.evidence(kit.run({"compile": "off"}, work, facts=facts), "off")
    assert (eager.took_effect, eager.detail) == (True, "dynamo compiled no frame")


def test_the_first_value_is_what_the_workload_does_itself(kit):
    assert COMPILE.baseline(kit.scope()) == "off"
    own = kit.scope(compiles_itself=True)
    assert COMPILE.offered(own) == (
        "as-built",
        "off",
        *[each for each in COMPILE.values if each not in ("as-built", "off")],
    )
    assert COMPILE.reference(own) == "off"
    assert "own code calls torch.compile, which is the baseline" in COMPILE.remark(own)
    assert COMPILE.remark(kit.scope()) is None
    assert COMPILE.unmet(kit.scope(), "as-built") == "is for a workload whose own code calls torch.compile"


def test_parameters_have_the_same_names_where_the_workload_compiles_itself():
    plain = set(parameters(Small()))
    assert set(parameters(torch.compile(Small()))) == plain == set(parameters(compiled_in_place()))


@pytest.mark.parametrize("logged", [True, False], ids=["logged", "log turned down"])
def test_a_recompile_limit_that_was_hit_is_caught(kit, logged):
    logger = logging.getLogger("torch._dynamo")
    level = logger.level
    logger.setLevel(logging.WARNING if logged else logging.CRITICAL)
    try:
        with torch._dynamo.config.patch({LIMIT: 1}):
            context = kit.prepare({"compile": "default"}, kit.workload(Small))
            torch._dynamo.mark_static(context.batches[0][0])
            kit.step(context)
            small = torch.randn(1, 4, 3, 3)
            torch._dynamo.mark_static(small)
            context.batches = [(small, context.batches[0][1])]
            kit.step(context)
            context.trace = trace_step(lambda: kit.step(context), cuda=False)
    finally:
        logger.setLevel(level)
    proof = COMPILE.evidence(context, "default")
    assert proof.took_effect is False
    assert "1 frame compiled to 1 graph; 1 frame fell back to eager" in proof.detail
    assert "the recompile limit was hit and later calls ran eagerly" in proof.detail
    if logged:
        assert f"hit config.{LIMIT} (1)" in proof.detail
        assert "last reason: 0/0" in proof.detail


def test_compiled_code_that_is_not_what_runs_is_caught(kit):
    context = kit.run({"compile": "default"}, kit.workload(Small))
    with torch._dynamo.config.patch(disable=True):
        torch._dynamo.reset()
        eager = Small()
        context.trace = trace_step(lambda: eager(context.batches[0][0]), cuda=False)
    proof = COMPILE.evidence(context, "default")
    assert proof.took_effect is False
    assert proof.detail.endswith("no compiled code ran in the profiled step")


def test_no_trace_leaves_it_unknown(kit):
    context = kit.prepare({"compile": "default"}, kit.workload(Small))
    kit.step(context)
    context.trace_error = "no CUPTI"
    proof = COMPILE.evidence(context, "default")
    assert proof.took_effect is None
    assert proof.detail.endswith("the step could not be profiled: no CUPTI")


def test_no_trace_leaves_off_unknown_too(kit):
    context = kit.prepare({"compile": "off"}, kit.workload(Small))
    context.trace_error = "no CUPTI"
    assert COMPILE.evidence(context, "off") == EvidenceResult(
        took_effect=None, detail="the step could not be profiled: no CUPTI"
    )


class Breaks(nn.Module):
    """Cannot be compiled in one piece."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.sin(x)
        torch._dynamo.graph_break()
        return torch.cos(x)


def test_what_was_counted_and_logged_before_is_not_its_own(kit):
    earlier = kit.run({"compile": "default"}, kit.workload(Breaks))
    assert COMPILE.evidence(earlier, "default").graph_breaks == 1
    logging.getLogger("torch._dynamo").warning("torch._dynamo hit config.recompile_limit (8)")
    context = kit.run({"compile": "default"}, kit.workload(Small))
    assert COMPILE.evidence(context, "default") == EvidenceResult(
        took_effect=True,
        detail="1 frame compiled to 1 graph; no graph break",
        graph_breaks=0,
        frames_compiled=1,
        recompiles=0,
    )
    assert COMPILE.evidence(earlier, "default").took_effect is False  # to that one the message is its own
    eager = kit.run({"compile": "off"}, kit.workload(Small))
    assert COMPILE.evidence(eager, "off") == EvidenceResult(took_effect=True, detail="dynamo compiled no frame")


def test_a_message_is_heard_once_however_many_were_compiled(kit):
    kit.prepare({"compile": "default"}, kit.workload(Small))
    context = kit.prepare({"compile": "default"}, kit.workload(Small))
    logging.getLogger("torch._dynamo").warning("once")
    assert records.messages_of(context) == ["once"]


def test_off_stays_off_while_others_compile_in_its_process(kit):
    context = kit.run({"compile": "off"}, kit.workload(Small))
    kit.run({"compile": "default"}, kit.workload(Small))
    assert COMPILE.evidence(context, "off") == EvidenceResult(
        took_effect=True, detail="no compiled code ran in the step; dynamo compiled 1 frame elsewhere in this process"
    )


def test_one_that_was_never_compiled_cannot_borrow_anothers_frames(kit):
    kit.run({"compile": "default"}, kit.workload(Small))
    forgetful = dataclasses.replace(COMPILE, apply=lambda context, value: COMPILE.apply(context, "off"))
    context = kit.run({"compile": "default"}, kit.workload(Small), replace={"compile": forgetful})
    assert COMPILE.evidence(context, "default").took_effect is False


def test_graph_breaks_are_counted_with_the_first_reason(kit):
    context = kit.run({"compile": "default"}, kit.workload(Breaks))
    proof = COMPILE.evidence(context, "default")
    assert proof.took_effect is True
    assert re.search("1 graph break, the first: .*graph_break", proof.detail)  # the words are torch's
    assert proof.graph_breaks == 1


def test_cuda_graphs_that_were_skipped_are_caught(kit):
    # A CPU has no CUDA graphs, so inductor really skips them here.
    context = kit.run({"compile": "reduce-overhead"}, kit.workload(Small))
    proof = COMPILE.evidence(context, "reduce-overhead")
    assert proof.took_effect is False
    assert "no CUDA graph was launched in the step, 1 graph skipped" in proof.detail


def test_without_records_of_the_gpu_a_cuda_graph_is_unknown_and_not_missing(kit):
    context = kit.run({"compile": "reduce-overhead"}, kit.workload(Small))
    context.device = torch.device("cuda")
    proof = COMPILE.evidence(context, "reduce-overhead")
    assert proof.took_effect is None
    assert "CUPTI gives no records here" in proof.detail
    launched = dataclasses.replace(context.trace, names=context.trace.names | {"cudaLaunchKernel"})
    context.trace = launched  # CUDA was seen, and no graph among its calls
    assert COMPILE.evidence(context, "reduce-overhead").took_effect is False


def test_a_step_that_calls_no_target_is_told_what_to_name(kit):
    work = kit.workload(infer=lambda model, batch, options: model.head(model.body(batch[0]).flatten(2).mean(2)))
    context = kit.prepare({"compile": "default"}, work)
    facts = context.facts = kit.scope(called=["body", "head"], misses_targets=True).workload
    kit.step(context)
    kit.trace_again(context)
    remedy = "the step calls no compile target, name what it calls: Workload(..., compile_targets=('body', 'head'))"
    proof = COMPILE.evidence(context, "default")
    assert proof.took_effect is False
    assert proof.detail == f"dynamo compiled 0 of 0 frames: the step ran eagerly; {remedy.replace('the step', 'it', 1)}"
    before = kit.scope(called=facts.called, misses_targets=True)
    assert COMPILE.unmet(before, "default") == f"would compile nothing: {remedy}"
    assert COMPILE.unmet(before, "off") is None


def test_recompiles_are_counted(kit):
    context = kit.prepare({"compile": "default"}, kit.workload(Small))
    for side in (8, 9):  # the second shape compiles once more
        context.batches = [tuple(kit.images(side=side)(2, torch.Generator()))]
        kit.step(context)
    kit.trace_again(context)
    proof = COMPILE.evidence(context, "default")
    assert (proof.frames_compiled, proof.recompiles) == (2, 1)


def test_modes_with_cuda_graphs_need_cuda(kit):
    for value in ("reduce-overhead", "max-autotune"):
        assert COMPILE.unmet(kit.scope(), value) == ("needs a CUDA device, this is A CPU; the mode uses CUDA graphs")
        assert COMPILE.unmet(kit.scope(kit.AMPERE), value) is None
    for value in ("off", "default", "max-autotune-no-cudagraphs"):
        assert COMPILE.unmet(kit.scope(), value) is None
