"""The step recorded once as a CUDA graph, by hand, and replayed: one launch in place of one for each kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpubench.report.model import Value
from gpubench.text import plural
from gpubench.toggles import evidence as read
from gpubench.toggles.eager_pass import FORWARD
from gpubench.toggles.printed import run_lines
from gpubench.toggles.step_parts import nothing
from gpubench.toggles.toggle import Conflict, EvidenceResult, Requirement, Scope, Stage, Toggle

if TYPE_CHECKING:
    import torch

    from gpubench.toggles.model_context import ModelContext

_GRAPHED, _PARTS = "cuda_graph.graphed", "cuda_graph.parts"  # notes: what records and replays, and what is in it

_CODE = """from torch.utils._pytree import tree_leaves, tree_map_only


class Graphed:
    # Records `step` for inputs of each shape, and replays it. The next call overwrites what this one returned.
    # `tensors` lists what a step changes: parameters, buffers, the optimizer's state.
    def __init__(self, step, tensors):
        self.step, self.tensors, self.graphs = step, tensors, {}

    def __call__(self, inputs):
        leaves = tree_leaves(inputs)
        key = tuple((x.shape, x.stride(), x.dtype) if isinstance(x, torch.Tensor) else x for x in leaves)
        if key not in self.graphs:
            self.graphs[key] = self.record(inputs)
        own, graph, output = self.graphs[key]
        for mine, given in zip(own, leaves):
            if isinstance(given, torch.Tensor):
                mine.copy_(given)
        graph.replay()
        return output

    def record(self, inputs):
        own = tree_map_only(torch.Tensor, torch.clone, inputs)
        before = {id(x): x.detach().clone() for x in self.tensors()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), torch.random.fork_rng(devices=[torch.cuda.current_device()]):
            for _ in range(3):  # libraries allocate, compilers compile
                self.step(own)
        torch.cuda.current_stream().wait_stream(side)
        with torch.no_grad():  # as if these steps had not been; an optimizer's new state begins at zero
            for x in self.tensors():
                x.copy_(before[id(x)]) if id(x) in before else x.zero_()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self.step(own)
        return tree_leaves(own), graph, output
"""
_INFERENCE = """
graphed = Graphed(lambda inputs: model(*inputs), lambda: [*model.parameters(), *model.buffers()])
# in each step, inside torch.no_grad(): output = graphed(inputs), which the next step overwrites"""
_TRAINING = """
# for group in optimizer.param_groups: group["capturable"] = True, where the optimizer has that (Adam, AdamW, RMSprop)
# def step(inputs): optimizer.zero_grad(), the loss, loss.backward(), optimizer.step(); return loss.detach()
# graphed = Graphed(step, lambda: [*model.parameters(), *model.buffers(), and the tensors in optimizer.state])
# in each step: loss = graphed(inputs), which the next step overwrites; what a scheduler or a gradient scaler decides
# on the host stays outside: then leave optimizer.step() out of `step`"""


def _usage(value: Value, scope: Scope | None) -> str:
    if value == "off":
        return "# cuda_graph: off"
    return _CODE + (_TRAINING if scope is not None and scope.workload.mode == "training" else _INFERENCE)


def on_cuda(scope: Scope) -> str | None:
    """Applies on a CUDA device."""
    return None if scope.device.kind == "cuda" else f"CUDA graphs need a CUDA device, this is {scope.device.name}"


def _can_be_recorded(scope: Scope) -> str | None:
    """No train_step of the workload's own, which may decide on the host what it does."""
    if scope.workload.mode == "training" and scope.workload.own_train_step:
        return "records no train_step of the workload's own, which may decide on the host what it does"
    return None


def apply(context: ModelContext, value: Value) -> None:
    """Records the forward pass, and in training the backward pass too and the update where the optimizer permits it."""
    if value == "off":
        return
    graphed = run_lines(_CODE)["Graphed"]
    parts, forward = context.step, context.step.forward
    context.notes[FORWARD] = forward
    if context.mode == "inference":
        context.notes[_PARTS] = "the forward pass"
        parts.forward = context.notes[_GRAPHED] = graphed(forward, lambda: _tensors(context))
        return
    zero_grad, backward, update = parts.zero_grad, parts.backward, parts.update
    updates = _update_can_be_recorded(context)

    def step(batch: Any) -> torch.Tensor:
        zero_grad()
        loss = forward(batch)
        backward(loss)
        if updates:
            update()
        detached: torch.Tensor = loss.detach()
        return detached

    context.notes[_PARTS] = "the forward and the backward pass" + (" and the update" if updates else "")
    parts.forward = context.notes[_GRAPHED] = graphed(step, lambda: _tensors(context))
    parts.zero_grad = parts.backward = nothing
    parts.update = nothing if updates else update


def _tensors(context: ModelContext) -> list[torch.Tensor]:
    """What a step changes on the device."""
    import torch

    states = [held for optimizer in context.optimizers.values() for held in optimizer.state.values()]
    kept = [value for held in states for value in held.values() if isinstance(value, torch.Tensor)]
    return [*context.model.parameters(), *context.model.buffers(), *kept]


def _update_can_be_recorded(context: ModelContext) -> bool:
    """Whether the optimizers decide nothing on the host; those that can be told so are."""
    if context.skipped is not None or context.schedulers:  # a gradient scaler and a learning rate are read by the host
        return False
    groups = [group for optimizer in context.optimizers.values() for group in optimizer.param_groups]
    kinds = {type(optimizer).__name__ for optimizer in context.optimizers.values()}
    if not kinds <= {"AdamW", "Adam", "RMSprop", "SGD"} or any(group.get("dampening") for group in groups):
        return False  # with dampening the first step of SGD differs from those with a momentum of zero
    for group in groups:
        if "capturable" in group:
            group["capturable"] = True
    return True


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether the profiled step launched a CUDA graph, and whether this toggle has recorded one."""
    trace = read.recorded(context)
    if isinstance(trace, EvidenceResult):
        return trace
    launched = read.replays_graph(trace)
    count = sum("GraphLaunch" in call for call in trace.cuda_calls) or int(launched)
    words = f"the step launched {plural(count, 'CUDA graph')}"
    if value == "off":  # nothing was changed: compiled code and the workload's own may have graphs too
        return EvidenceResult(True, words)
    graphed = context.notes.get(_GRAPHED)
    if graphed is None or not graphed.graphs:
        return EvidenceResult(False, f"{words}; none was recorded")
    words += f"; {plural(len(graphed.graphs), 'graph')} of {context.notes[_PARTS]} recorded"
    if not launched and read.is_blind(context, trace):
        return EvidenceResult(None, f"{words}; {read.BLIND}")
    return EvidenceResult(launched, words)


CUDA_GRAPH = Toggle(
    name="cuda_graph",
    summary="The step recorded as a CUDA graph by hand and replayed, in eager or compiled code.",
    values={
        "off": "the host launches each kernel in each step",
        "on": "one launch replays the forward pass, in training the backward pass and mostly the update too",
    },
    stage=Stage.COMPILE,
    after=("compile",),
    applies=on_cuda,
    replays_graphs=("on",),
    ranks_anew_compiled=True,  # what it saves is the host's work, of which compiled code has less
    requires={"on": Requirement(device_kinds=("cuda",), check=_can_be_recorded)},
    conflicts=(
        Conflict(
            value="on",
            other="compile",
            other_values=("reduce-overhead", "max-autotune"),
            reason="that mode has CUDA graphs of its own, which cannot be recorded in another",
        ),
    ),
    apply=apply,
    evidence=evidence,
    usage=_usage,
    claims=("cytodl", "vae-guide"),
    source="PyTorch documentation: CUDA semantics, CUDA Graphs (torch.cuda.CUDAGraph, torch.cuda.graph)",
)
