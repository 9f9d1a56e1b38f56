"""Whether code that cannot be compiled in one piece is an error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpubench.report.model import Value
from gpubench.text import plural
from gpubench.toggles import dynamo_records as records
from gpubench.toggles.compilation.compile_call import EAGER, MODES, usage_beside
from gpubench.toggles.toggle import EvidenceResult, Stage, Toggle, always

if TYPE_CHECKING:
    from gpubench.toggles.model_context import ModelContext


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether dynamo was told to make whole graphs, each time it made one."""
    compiler = context.configuration.get("compile", "off")
    if compiler in EAGER:
        return EvidenceResult(True, f"compile={compiler}, so that nothing is told")
    told = [graph.fullgraph for graph in records.graphs_of(context)]
    if None in told:
        return EvidenceResult(None if value == "on" else True, "this version of dynamo does not tell what it was told")
    words = f"{told.count(True)} of {plural(len(told), 'graph')} had to be whole"
    return EvidenceResult(value == "off" or (bool(told) and all(told)), words)


COMPILE_FULLGRAPH = Toggle(
    name="compile_fullgraph",
    summary="torch.compile(fullgraph=...): code that cannot be compiled in one piece is an error.",
    values={
        "off": "dynamo breaks the graph there and goes on behind it",
        "on": "the row fails with dynamo's reason, so that a row which runs has no graph break",
    },
    stage=Stage.COMPILE,
    applies=always,
    prerequisites={"on": {"compile": MODES}},
    idle_when={"compile": EAGER},
    evidence=evidence,
    usage=lambda value, scope: usage_beside("default", scope, {"compile_fullgraph": value}),
    usage_beside=lambda value, scope, configuration: "",
    source="PyTorch documentation: torch.compile, fullgraph; Working with Graph Breaks",
)
