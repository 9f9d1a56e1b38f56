"""What dynamo and inductor did in this process: their counters, what they only log, and the graphs that were compiled.

Each configuration remembers where its own part begins.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from gpubench.toggles.model_context import ModelContext

RECOMPILES = "gpubench.recompiles"  # beside dynamo's own groups of counters
CHECKPOINT = "tag_activation_checkpoint"  # what dynamo makes of a call of torch.utils.checkpoint
_START = "dynamo_records.start"  # note: where the context's own records begin
_COMPUTE = re.compile(r"conv|linear|attention|einsum|matmul|(?<![a-z])(add|badd|addb)?b?mm(?![a-z])")


@dataclass(frozen=True)
class Graph:
    """A graph that a backend has compiled, and how dynamo was told to make it."""

    backend: str  # what compiled it: "inductor"
    function: str  # whose code it is of: "Block.forward"
    symbolic: int  # sizes that may change from call to call
    dynamic: bool | None  # what torch.compile was told; None: sizes are fixed until they change
    fullgraph: bool | None  # None: this torch does not tell
    checkpoints: int  # regions that are to be computed again in the backward pass
    computing: int  # convolutions, matrix products and attentions


class _Listener(logging.Handler):
    """Collects what dynamo and inductor only log: a hit recompile limit, skipped CUDA graphs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


_LISTENER = _Listener()  # one per process
_GRAPHS: list[Graph] = []  # the same


def begin(context: ModelContext) -> None:
    """What is recorded from now on belongs to `context`."""
    context.notes[_START] = _all_counters(), len(_LISTENER.messages), len(_GRAPHS)


def listen() -> None:
    """From now on messages and graphs are recorded; once is enough."""
    from torch._dynamo.output_graph import OutputGraph

    for name in ("torch._dynamo", "torch._inductor"):
        logging.getLogger(name).addHandler(_LISTENER)  # no effect if it is already there
    given_to_backend = OutputGraph.call_user_compiler
    if hasattr(given_to_backend, "is_ours"):
        return

    def recorded(output: Any, module: Any, *arguments: Any, **named: Any) -> Any:
        compiled = given_to_backend(output, module, *arguments, **named)
        _GRAPHS.append(_graph(output, module))
        return compiled

    recorded.is_ours = True  # type: ignore[attr-defined]
    OutputGraph.call_user_compiler = recorded  # type: ignore[method-assign, assignment]


def _graph(output: Any, module: Any) -> Graph:
    import torch
    from torch._dynamo import config

    nodes = list(module.graph.nodes)
    called = [_called(node) for node in nodes if node.op.startswith("call")]
    fixed = None if config.automatic_dynamic_shapes else False
    return Graph(
        backend=_backend(output.compiler_fn),
        function=output.root_tx.f_code.co_qualname,
        symbolic=sum(isinstance(node.meta.get("example_value"), torch.SymInt) for node in _inputs(nodes)),
        dynamic=fixed if config.assume_static_by_default else True,
        fullgraph=getattr(output.root_tx, "one_graph", None),
        checkpoints=called.count(CHECKPOINT),
        computing=sum(bool(_COMPUTE.search(name)) for name in called),
    )


def _inputs(nodes: list[Any]) -> Iterator[Any]:
    return (node for node in nodes if node.op == "placeholder")


def _called(node: Any) -> str:
    """The name of what a node of a graph calls: "linear"."""
    return str(getattr(node.target, "__name__", node.target)).rpartition(".")[2]


def _backend(compiler: Any) -> str:
    """The name that torch.compile was given, of a compiler which dynamo has wrapped."""
    for name in ("_torchdynamo_orig_backend", "_torchdynamo_orig_callable"):  # the latter in older versions
        while hasattr(compiler, name):
            compiler = getattr(compiler, name)
    return str(getattr(compiler, "compiler_name", getattr(compiler, "__name__", type(compiler).__name__)))


def _all_counters() -> dict[str, dict[str, int]]:
    from torch._dynamo import convert_frame
    from torch._dynamo.utils import counters

    attempts = getattr(convert_frame, "FRAME_COMPILE_COUNTER", {})  # frame -> how often it was compiled
    found: dict[str, dict[Any, int]] = {group: dict(counts) for group, counts in counters.items()}
    return found | {RECOMPILES: {frame: count - 1 for frame, count in attempts.items()}}


def counters_of(context: ModelContext) -> dict[str, dict[str, int]]:
    """What dynamo counted since `begin`, without counts that did not grow."""
    start, _, _ = context.notes.get(_START, ({}, 0, 0))
    # Counters keep the positive part of a difference only.
    return {group: dict(Counter(now) - Counter(start.get(group))) for group, now in _all_counters().items()}


def frames_of(context: ModelContext) -> tuple[int, int]:
    """How many frames dynamo has seen since `begin`, and how many of them it compiled."""
    frames = counters_of(context).get("frames", {})
    whole = sum(graph.fullgraph is True for graph in graphs_of(context))  # a frame each, which dynamo does not count
    return frames.get("total", 0) + whole, frames.get("ok", 0) + whole


def messages_of(context: ModelContext) -> list[str]:
    """What dynamo and inductor logged since `begin`."""
    return _LISTENER.messages[context.notes.get(_START, ({}, 0, 0))[1] :]


def graphs_of(context: ModelContext) -> list[Graph]:
    """The graphs that were compiled since `begin`; none where that never was."""
    return _GRAPHS[context.notes.get(_START, ({}, 0, len(_GRAPHS)))[2] :]


def compiled_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The submodules that torch.compile was applied to in place, by dotted name; "" is the model."""
    return {name: module for name, module in model.named_modules() if _is_compiled(module)}


def _is_compiled(module: nn.Module) -> bool:
    return module._compiled_call_impl is not None or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
