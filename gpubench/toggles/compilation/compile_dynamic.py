"""Whether compiled code is for sizes that may change: once they did, from the first call on, or never."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpubench.report.model import Value
from gpubench.text import plural
from gpubench.toggles import dynamo_records as records
from gpubench.toggles.compilation.compile_call import EAGER, MODES, usage_beside
from gpubench.toggles.toggle import EvidenceResult, Stage, Toggle, always

if TYPE_CHECKING:
    from gpubench.toggles.model_context import ModelContext

_TOLD = {"on": True, "off": False}


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """What dynamo was told when it made each graph, and how many graphs have sizes that may change."""
    compiler = context.configuration.get("compile", "off")
    if compiler in EAGER:
        return EvidenceResult(True, f"compile={compiler}, so that nothing is told")
    graphs = records.graphs_of(context)
    open_ones = sum(graph.symbolic > 0 for graph in graphs)
    told = ", ".join(dict.fromkeys(str(graph.dynamic) for graph in graphs))
    words = f"{open_ones} of {plural(len(graphs), 'graph')} have sizes that may change"
    words += f"; dynamic was {told}" if told else ""
    if value not in _TOLD:
        return EvidenceResult(True, words)
    as_told = bool(graphs) and all(graph.dynamic is _TOLD[str(value)] for graph in graphs)
    if value == "on" and as_told and not open_ones:
        return EvidenceResult(False, f"{words}: the model's code allows one size only")
    return EvidenceResult(as_told and (open_ones > 0) == (value == "on"), words)


_BESIDE = {"compile": MODES}

COMPILE_DYNAMIC = Toggle(
    name="compile_dynamic",
    summary="torch.compile(dynamic=...): whether compiled code is for sizes that may change.",
    values={
        "auto": "for the sizes of the first call; a size that changes is left open from then on",
        "on": "all sizes are left open from the first call on, where the code allows that",
        "off": "for one set of sizes; others are compiled anew",
    },
    stage=Stage.COMPILE,
    applies=always,
    prerequisites={"on": _BESIDE, "off": _BESIDE},
    idle_when={"compile": EAGER},
    evidence=evidence,
    usage=lambda value, scope: usage_beside("default", scope, {"compile_dynamic": value}),
    usage_beside=lambda value, scope, configuration: "",
    source="PyTorch documentation: torch.compile, dynamic; Dynamic Shapes",
)
