from __future__ import annotations

import pytest
import torch
from torch import nn

from gpubench.toggles import usage
from gpubench.toggles.compilation.compile import COMPILE
from gpubench.toggles.compilation.compile_scope import COMPILE_SCOPE
from gpubench.toggles.dynamo_records import compiled_modules
from gpubench.toggles.printed import run_lines
from gpubench.toggles.traits import with_prerequisites, without_idle
from gpubench.workloads.describe import compile_targets
from gpubench.workloads.workload_facts import CompileTarget

pytestmark = pytest.mark.usefixtures("eager")
BLOCKS = [CompileTarget(name=f"blocks.{index}", forward_module="mine") for index in range(3)]
HEAD = CompileTarget(name="head", forward_module="mine")
WHOLE = CompileTarget(name="", forward_module="mine")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("targets", "1 of 1 target and 0 other modules compiled by themselves; dynamo made 1 graph of "),
        ("blocks", "3 of 3 blocks and 0 other modules compiled by themselves; dynamo made 1 graph of Block.forward"),
        ("whole", "1 of 1 model and 0 other modules compiled by themselves; dynamo made 1 graph of Stack.forward"),
    ],
)
def test_what_was_compiled_is_what_the_value_says(kit, compiling, value, words):
    work = compiling.stack(compile_targets=("head",))
    context = kit.run({"compile": "default", "compile_scope": value}, work)
    proof = COMPILE_SCOPE.evidence(context, value)
    assert proof.took_effect is True
    assert words in proof.detail
    assert COMPILE.evidence(context, "default").took_effect is True
    plain = kit.prepare({"compile": "off"}, work)
    with torch.no_grad():
        expected, found = (each.step.forward(plain.batches[0]) for each in (plain, context))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("value", ["blocks", "whole"])
def test_a_scope_that_was_not_applied_is_caught(kit, compiling, value):
    work = compiling.stack(compile_targets=("head",))
    configuration = {"compile": "default", "compile_scope": value}
    context = kit.run(configuration, work, replace={"compile": compiling.without_options()})
    proof = COMPILE_SCOPE.evidence(context, value)
    assert proof.took_effect is False
    assert "and 1 other module compiled" in proof.detail


def test_targets_that_were_not_compiled_are_caught(kit, compiling):
    context = kit.run({"compile": "default", "compile_scope": "blocks"}, compiling.stack())
    assert COMPILE_SCOPE.evidence(context, "targets").took_effect is False


def test_without_compilation_there_is_nothing_to_choose(kit, compiling):
    context = kit.run({"compile": "off"}, compiling.stack())
    assert COMPILE_SCOPE.evidence(context, "targets").detail == "compile=off, so that no part is chosen"
    assert COMPILE_SCOPE.evidence(context, "targets").took_effect is True


def test_blocks_of_more_shapes_than_dynamo_compiles_by_itself_are_all_compiled(kit, compiling):
    work = compiling.stack(tuple(range(3, 13)))
    context = kit.run({"compile": "default", "compile_scope": "blocks"}, work)
    proof = COMPILE.evidence(context, "default")
    assert (proof.took_effect, proof.frames_compiled) == (True, 10), proof.detail
    assert COMPILE_SCOPE.evidence(context, "blocks").took_effect is True


class Encoder(nn.Module):
    """Blocks of torch's own class, whose frames dynamo leaves alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(4, 1, 6, dropout=0.0) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        return x


def test_blocks_of_torchs_own_class_are_compiled(kit):
    context = kit.run({"compile": "default", "compile_scope": "blocks"}, kit.workload(Encoder))
    assert COMPILE_SCOPE.evidence(context, "blocks").took_effect is True
    assert COMPILE.evidence(context, "default").took_effect is True


def test_applies_to_models_with_blocks(kit):
    assert COMPILE_SCOPE.applies(kit.scope()) == "workload net has no repeated blocks"
    assert COMPILE_SCOPE.applies(kit.scope(blocks=3)) is None


def test_what_would_be_the_same_or_nothing_is_skipped(kit):
    whole = kit.scope(blocks=3, block_targets=BLOCKS, compile_targets=[WHOLE])
    assert COMPILE_SCOPE.unmet(whole, "whole") == (
        "is the same as targets: the workload's compile target is the whole model"
    )
    assert COMPILE_SCOPE.unmet(whole, "blocks") is None
    own = kit.scope(blocks=3, block_targets=BLOCKS, compile_targets=BLOCKS)
    assert COMPILE_SCOPE.unmet(own, "blocks") == (
        "is the same as targets: the workload's compile targets are its blocks"
    )
    assert COMPILE_SCOPE.unmet(own, "whole") is None
    parts = kit.scope(blocks=3, compile_targets=[HEAD], called=["blocks.0", "head"])
    assert COMPILE_SCOPE.unmet(parts, "whole") == (
        "would compile nothing: the step calls blocks.0, head and not the model itself"
    )


def test_a_step_that_calls_no_target_can_have_its_blocks_compiled(kit):
    scope = kit.scope(blocks=3, called=["body"], misses_targets=True)
    assert COMPILE.unmet(scope, "default", {"compile_scope": "targets"}) is not None
    assert COMPILE.unmet(scope, "default", {"compile_scope": "blocks"}) is None


def test_it_brings_a_compilation_and_is_idle_without(kit):
    base = {"compile": "off", "compile_scope": "targets"}
    scope = kit.scope(blocks=3)
    assert with_prerequisites({"compile_scope": "blocks"}, base, scope) == {
        "compile_scope": "blocks",
        "compile": "default",
    }
    assert without_idle({"compile": "off", "compile_scope": "blocks"}) == {"compile": "off"}
    assert (COMPILE_SCOPE.unmet(scope, "blocks", base) or "").startswith("needs compile=default or ")
    assert COMPILE_SCOPE.unmet(scope, "targets", base) is None


def test_the_printed_lines_are_the_ones_that_ran(kit, compiling):
    model = compiling.Stack()
    parts = compile_targets(model, [f"blocks.{index}" for index in range(3)])
    scope = kit.scope(blocks=3, block_targets=parts, compile_targets=[WHOLE])
    printed = usage({"compile": "default", "compile_scope": "blocks"}, scope)
    assert printed == 'for block in (*model.blocks[:3],):\n    block.compile(mode="default")'
    run_lines(printed, model=model)
    assert list(compiled_modules(model)) == ["blocks.0", "blocks.1", "blocks.2"]
    assert usage({"compile": "off", "compile_scope": "blocks"}, scope) == ""
    assert usage({"compile": "default", "compile_scope": "whole"}, scope) == 'model.compile(mode="default")'
