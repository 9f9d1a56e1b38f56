from __future__ import annotations

import pytest
import torch
from torch import nn

from gpubench.toggles import dynamo_records as records
from gpubench.toggles.compilation.compile import COMPILE
from gpubench.toggles.compilation.compile_fullgraph import COMPILE_FULLGRAPH

pytestmark = pytest.mark.usefixtures("eager")


@pytest.mark.parametrize(("value", "whole"), [("off", 0), ("on", 1)])
def test_graphs_have_to_be_whole_as_the_value_says(kit, compiling, value, whole):
    context = kit.run({"compile": "default", "compile_fullgraph": value}, compiling.stack())
    proof = COMPILE_FULLGRAPH.evidence(context, value)
    assert (proof.took_effect, proof.detail) == (True, f"{whole} of 1 graph had to be whole")
    compiled = COMPILE.evidence(context, "default")
    assert (compiled.took_effect, compiled.frames_compiled) == (True, 1)
    assert compiled.detail == "1 frame compiled to 1 graph; no graph break"


def test_a_value_that_was_not_applied_is_caught(kit, compiling):
    configuration = {"compile": "default", "compile_fullgraph": "on"}
    context = kit.run(configuration, compiling.stack(), replace={"compile": compiling.without_options()})
    assert COMPILE_FULLGRAPH.evidence(context, "on").took_effect is False


class Breaks(nn.Module):
    """Cannot be compiled in one piece."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.sin(x)
        torch._dynamo.graph_break()
        return torch.cos(x)


def test_code_that_breaks_the_graph_fails_with_dynamos_reason(kit):
    context = kit.prepare({"compile": "default", "compile_fullgraph": "on"}, kit.workload(Breaks))
    with pytest.raises(torch._dynamo.exc.Unsupported, match="graph_break"):
        kit.step(context)
    whole = kit.run({"compile": "default", "compile_fullgraph": "off"}, kit.workload(Breaks))
    assert COMPILE.evidence(whole, "default").graph_breaks == 1
    assert COMPILE_FULLGRAPH.evidence(whole, "off").took_effect is True


def test_a_version_that_does_not_tell_leaves_it_unknown(kit, compiling, monkeypatch):
    context = kit.run({"compile": "default", "compile_fullgraph": "on"}, compiling.stack())
    silent = [records.Graph("inductor", "f", 0, None, None, 0, 0)]
    monkeypatch.setattr(records, "graphs_of", lambda _: silent)
    assert COMPILE_FULLGRAPH.evidence(context, "on").took_effect is None
    assert COMPILE_FULLGRAPH.evidence(context, "off").took_effect is True


def test_without_compilation_nothing_is_told(kit):
    context = kit.run({"compile": "off"})
    assert COMPILE_FULLGRAPH.evidence(context, "off").took_effect is True
