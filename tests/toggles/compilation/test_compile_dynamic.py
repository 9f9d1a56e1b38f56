from __future__ import annotations

import pytest
import torch

from gpubench.toggles import usage
from gpubench.toggles.compilation.compile import COMPILE
from gpubench.toggles.compilation.compile_dynamic import COMPILE_DYNAMIC

pytestmark = pytest.mark.usefixtures("eager")


@pytest.mark.parametrize(("value", "told", "open_ones"), [("auto", None, 0), ("on", True, 1), ("off", False, 0)])
def test_sizes_are_left_open_as_the_value_says(kit, compiling, value, told, open_ones):
    context = kit.run({"compile": "default", "compile_dynamic": value}, compiling.stack())
    proof = COMPILE_DYNAMIC.evidence(context, value)
    assert proof.took_effect is True, proof.detail
    assert proof.detail == f"{open_ones} of 1 graph have sizes that may change; dynamic was {told}"
    assert COMPILE.evidence(context, "default").took_effect is True


@pytest.mark.parametrize("value", ["on", "off"])
def test_a_value_that_was_not_applied_is_caught(kit, compiling, value):
    configuration = {"compile": "default", "compile_dynamic": value}
    context = kit.run(configuration, compiling.stack(), replace={"compile": compiling.without_options()})
    assert COMPILE_DYNAMIC.evidence(context, value).took_effect is False


@pytest.mark.parametrize(("value", "frames"), [("auto", 2), ("on", 1), ("off", 3)])
def test_other_sizes_are_compiled_anew_as_the_value_says(kit, compiling, value, frames):
    context = kit.prepare({"compile": "default", "compile_dynamic": value}, compiling.stack())
    for side in (8, 9, 10):
        context.batches = [tuple(kit.images(side=side)(2, torch.Generator()))]
        kit.step(context)
    kit.trace_again(context)
    assert COMPILE.evidence(context, "default").frames_compiled == frames


def test_without_compilation_nothing_is_told(kit):
    context = kit.run({"compile": "off"})
    assert COMPILE_DYNAMIC.evidence(context, "auto").detail == "compile=off, so that nothing is told"


def test_no_graph_is_no_effect(kit, compiling):
    context = kit.prepare({"compile": "default", "compile_dynamic": "on"}, compiling.stack())
    assert COMPILE_DYNAMIC.evidence(context, "on").took_effect is False
    assert COMPILE_DYNAMIC.evidence(context, "auto").took_effect is True


def test_it_is_an_argument_of_the_one_call():
    beside = {"compile": "default", "compile_dynamic": "on", "compile_fullgraph": "on"}
    assert usage(beside) == 'model.compile(mode="default", dynamic=True, fullgraph=True)'
    assert usage({**beside, "compile": "off"}) == ""
    assert COMPILE_DYNAMIC.usage("off", None) == 'model.compile(mode="default", dynamic=False)'
