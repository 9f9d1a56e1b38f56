"""Which parts of the model torch.compile is applied to: the workload's targets, each repeated block, or the whole."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from gpubench.report.model import Value
from gpubench.text import plural
from gpubench.toggles import dynamo_records as records
from gpubench.toggles.compilation.compile_call import EAGER, MODES, usage_beside
from gpubench.toggles.toggle import EvidenceResult, Requirement, Scope, Stage, Toggle
from gpubench.workloads.blocks import blocks

if TYPE_CHECKING:
    from torch import nn

    from gpubench.toggles.model_context import ModelContext


def has_blocks(scope: Scope) -> str | None:
    """Applies to models with repeated blocks."""
    return None if scope.workload.blocks else f"workload {scope.workload.name} has no repeated blocks"


def _differs(names: set[str], scope: Scope) -> bool:
    return scope.workload.compile_targets is None or {each.name for each in scope.workload.compile_targets} != names


def blocks_are_not_the_targets(scope: Scope) -> str | None:
    """The workload's targets are other parts than its blocks."""
    same = not _differs({each.name for each in scope.workload.block_targets}, scope)
    return "is the same as targets: the workload's compile targets are its blocks" if same else None


def step_calls_the_model(scope: Scope) -> str | None:
    """The workload's targets are parts of the model, and its step calls the model itself."""
    called = scope.workload.called
    if not _differs({""}, scope):
        return "is the same as targets: the workload's compile target is the whole model"
    if called and "" not in called:
        return f"would compile nothing: the step calls {', '.join(called)} and not the model itself"
    return None


def _wanted(context: ModelContext, value: Value) -> dict[str, nn.Module]:
    if value == "blocks":
        return blocks(context.model)
    names = [""] if value == "whole" else context.workload.compile_targets
    modules = dict(context.model.named_modules(remove_duplicate=False))
    return {name: modules[name] for name in names if name in modules}


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Which submodules torch.compile was applied to, and whose code dynamo compiled."""
    compiler = context.configuration.get("compile", "off")
    if compiler in EAGER:
        return EvidenceResult(True, f"compile={compiler}, so that no part is chosen")
    found, wanted = records.compiled_modules(context.model), _wanted(context, value)
    ids, wanted_ids = ({id(module) for module in modules.values()} for modules in (found, wanted))
    kinds = {"blocks": ("block", "blocks"), "whole": ("model", "models")}
    one, many = kinds.get(str(value), ("target", "targets"))
    words = f"{len(wanted_ids & ids)} of {plural(len(wanted_ids), one, many)}"
    words += f" and {plural(len(ids - wanted_ids), 'other module')} compiled by themselves"
    functions = Counter(graph.function for graph in records.graphs_of(context))
    made = ", ".join(f"{plural(count, 'graph')} of {name}" for name, count in functions.most_common())
    words += f"; dynamo made {made or 'no graph'}"
    if value == "targets":  # the workload's own code may compile more of them at its first call
        return EvidenceResult(wanted_ids <= ids, words)
    return EvidenceResult(ids == wanted_ids and bool(functions), words)


_BESIDE = {"compile": MODES}

COMPILE_SCOPE = Toggle(
    name="compile_scope",
    summary="The parts of the model that torch.compile is applied to, each by itself.",
    values={
        "targets": "the workload's compile targets: the whole model, where it names no others",
        "blocks": "each repeated block (regional compilation): blocks that are alike are compiled once",
        "whole": "the model as one, in place of the workload's targets",
    },
    stage=Stage.COMPILE,
    applies=has_blocks,
    requires={
        "blocks": Requirement(check=blocks_are_not_the_targets),
        "whole": Requirement(check=step_calls_the_model),
    },
    prerequisites={"blocks": _BESIDE, "whole": _BESIDE},
    idle_when={"compile": EAGER},
    evidence=evidence,
    usage=lambda value, scope: usage_beside("default", scope, {"compile_scope": value}),
    usage_beside=lambda value, scope, configuration: "",
    source="PyTorch tutorial: Reducing torch.compile cold start compilation time with regional compilation",
)
