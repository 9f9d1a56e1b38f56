"""The one call of torch.compile: its lines, with what every toggle of this family adds to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from gpubench.report.model import Value
from gpubench.toggles.printed import each_submodule, expression
from gpubench.toggles.toggle import AS_BUILT, Scope
from gpubench.workloads.workload_facts import CompileTarget

EAGER = ("off", AS_BUILT)  # values of `compile` with which nothing of ours is compiled
CUDA_GRAPH_MODES = ("reduce-overhead", "max-autotune")
MODES = ("default", "max-autotune-no-cudagraphs", *CUDA_GRAPH_MODES)
SCOPE, BACKEND = "compile_scope", "compile_backend"
# Dynamo leaves frames of torch's own files alone, so that `compile()` on a bare nn.Sequential silently does nothing. A
# function around its forward is compiled instead, and the container is traced as part of it. Each target has a function
# of its own in the text, since dynamo's recompile limit counts by code object.
_WRAPPED = (
    "{module}.forward = torch.compile("
    "lambda *args, forward={module}.forward, **kwargs: forward(*args, **kwargs), {arguments})"
)
_WHY_WRAPPED = "# .compile() would leave the forward of torch's own classes eager, so a function around it is compiled"
_RECOMPILE_LIMIT = 8  # of torch itself, for each code object
# What other toggles of this family add to the call of torch.compile: toggle -> value -> arguments.
_OPTIONS: dict[str, dict[Value, str]] = {
    "compile_dynamic": {"on": "dynamic=True", "off": "dynamic=False"},
    "compile_fullgraph": {"on": "fullgraph=True"},
    # By themselves both may compute in less than fp32 what is fp32: OpenVINO in bfloat16, TensorRT in TF32.
    BACKEND: {
        "openvino": 'backend="openvino", options={"aot_autograd": True, "config": {"INFERENCE_PRECISION_HINT": "f32"}}',
        "onnxrt": 'backend="onnxrt"',
        "tensorrt": 'backend="tensorrt", options={"disable_tf32": True}',
    },
}
_IMPORTS: dict[Value, str] = {
    "openvino": "import openvino.torch  # registers the backend",
    "tensorrt": "import torch_tensorrt  # registers the backend",
}


def lines(mode: str, parts: Sequence[CompileTarget], configuration: Mapping[str, Value]) -> str:
    """The calls that compile `parts` in that mode, as the other toggles of `configuration` ask for."""
    chosen = [options.get(configuration.get(name, "")) for name, options in _OPTIONS.items()]
    backend = configuration.get(BACKEND)
    arguments = ", ".join(filter(None, ["" if backend in _OPTIONS[BACKEND] else f'mode="{mode}"', *chosen]))
    found = [_IMPORTS[backend]] if backend in _IMPORTS else []
    if configuration.get(SCOPE) == "blocks":
        return "\n".join([*found, *_each_block(parts, arguments)])
    for part in parts:
        if _is_torchs(part) and _WHY_WRAPPED not in found:
            found.append(_WHY_WRAPPED)
        found.append(_call(expression(part.name), arguments, is_torchs=_is_torchs(part)))
    return "\n".join(found)


def _is_torchs(part: CompileTarget) -> bool:
    return part.forward_module.startswith("torch.")


def _call(module: str, arguments: str, *, is_torchs: bool) -> str:
    return _WRAPPED.format(module=module, arguments=arguments) if is_torchs else f"{module}.compile({arguments})"


def _each_block(parts: Sequence[CompileTarget], arguments: str) -> Iterator[str]:
    if len(parts) > _RECOMPILE_LIMIT:
        yield f"torch._dynamo.config.cache_size_limit = {len(parts)}  # blocks of other shapes share their code"
    for is_torchs in (False, True):
        if names := [part.name for part in parts if _is_torchs(part) is is_torchs]:
            yield from [_WHY_WRAPPED] if is_torchs else []
            yield f"for block in {each_submodule(names)}:"
            yield f"    {_call('block', arguments, is_torchs=is_torchs)}"


_UNKNOWN_TARGETS = """# This report does not say which parts were compiled. The next line compiles the whole model;
# where the workload names compile_targets, each of those was compiled instead."""
_WHOLE = CompileTarget(name="", forward_module="")
_EXAMPLE = [CompileTarget(name=f"blocks.{index}", forward_module="") for index in range(2)]


def usage_beside(value: Value, scope: Scope | None, configuration: Mapping[str, Value]) -> str:
    """The lines that compile, with the arguments that the other toggles of `configuration` ask for."""
    if value in EAGER:
        return "# compile: off" if value == "off" else "# compile: as the workload's own code does"
    facts = scope.workload if scope else None
    chosen = configuration.get(SCOPE, "targets")
    if chosen == "blocks":
        parts = facts.block_targets if facts else _EXAMPLE
    elif chosen == "whole":
        parts = [facts.whole_target or _WHOLE] if facts else [_WHOLE]
    else:
        parts = (facts.compile_targets if facts else None) or [_WHOLE]
    found = [lines(str(value), parts, configuration)]
    if facts and chosen == "targets" and facts.compile_targets is None:
        found.insert(0, _UNKNOWN_TARGETS)
    if value in CUDA_GRAPH_MODES:
        found.append("# at the start of each step: torch.compiler.cudagraph_mark_step_begin()")
    return "\n".join(found)
