"""torch.compile: the model's targets compiled by dynamo and inductor, with or without CUDA graphs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpubench.flags import PARTLY_COMPILED, Flag
from gpubench.measure.compile_cache import came_from_cache
from gpubench.measure.trace import Trace
from gpubench.report.model import Value
from gpubench.text import plural
from gpubench.toggles import dynamo_records as records
from gpubench.toggles import evidence as read
from gpubench.toggles.compilation.compile_call import CUDA_GRAPH_MODES, EAGER, SCOPE, lines, usage_beside
from gpubench.toggles.kernels import compute_kernels
from gpubench.toggles.printed import run_lines
from gpubench.toggles.toggle import AS_BUILT, EvidenceResult, Requirement, Scope, Stage, Toggle
from gpubench.workloads.blocks import blocks
from gpubench.workloads.describe import compile_targets
from gpubench.workloads.workload_facts import CompileTarget

if TYPE_CHECKING:
    import torch

    from gpubench.toggles.model_context import ModelContext

_BENCHMARKING_MODES = ("max-autotune", "max-autotune-no-cudagraphs")
# What the profiler calls compiled code: dynamo's region, inductor's call, and both in one autograd function.
_COMPILED_EVENTS = ("Torch-Compiled Region", "## Call CompiledFxGraph", "CompiledFunction")


def _one_graph_generation(forward: Callable[[Any], Any]) -> Callable[[Any], Any]:
    # Marks the start of a step for CUDA graphs, so that outputs (tiles, windows) are not overwritten within a step.
    import torch

    def call(batch: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return forward(batch)

    return call


def apply(context: ModelContext, value: Value) -> None:
    """Compiles each of the workload's compile targets, or what `compile_scope` names, by itself and in place."""
    records.begin(context)
    is_own = context.facts is not None and context.facts.compiles_itself
    context.compiled = is_own if value == AS_BUILT else value != "off"
    if value != AS_BUILT:
        _undo(context, eager=is_own and value == "off")
    if not context.compiled:
        return
    records.listen()
    if value in CUDA_GRAPH_MODES:
        context.step.forward = _one_graph_generation(context.step.forward)
    if value != AS_BUILT:
        run_lines(lines(str(value), _parts(context), context.configuration), model=context.model)


def _undo(context: ModelContext, *, eager: bool) -> None:
    """Takes off what the workload's own code has compiled; `eager`: its compiled functions run eagerly as well."""
    import torch
    from torch._dynamo import OptimizedModule

    if eager:
        torch.compiler.set_stance("force_eager")
    if isinstance(context.model, OptimizedModule):
        context.model = context.model._orig_mod
    for module in list(context.model.modules()):
        for name, child in module._modules.items():
            if isinstance(child, OptimizedModule):
                module._modules[name] = child._orig_mod
    for module in context.model.modules():
        if module._compiled_call_impl is not None:
            module._compiled_call_impl = None


def _parts(context: ModelContext) -> list[CompileTarget]:
    """What is compiled, each by itself."""
    names = {"blocks": list(blocks(context.model)), "whole": [""]}
    chosen = names.get(str(context.configuration.get(SCOPE)), context.workload.compile_targets)
    return compile_targets(context.model, chosen)  # workloads/describe.py has checked that the targets are there


def _graph_break_count(context: ModelContext) -> int | None:
    """Graph breaks since the toggle was applied to `context`; None if it was not compiled."""
    return sum(records.counters_of(context).get("graph_break", {}).values()) if context.compiled else None


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "no reason given"


def _recompile_limit(counters: dict[str, dict[str, int]], messages: list[str]) -> str | None:
    # All versions log it; newer ones count it too, which still works where their logging was turned down.
    logged = [message for message in messages if "hit config." in message and "_limit" in message]
    if logged:
        lines = [line.strip() for line in logged[0].splitlines()]
        return "; ".join(
            line for line in lines if "hit config." in line or line.startswith(("function", "last reason"))
        )
    names = ("recompile limit", "cache_size_limit")  # the latter until torch 2.6
    counted = [reason for reason in counters.get("unimplemented", {}) if any(name in reason.lower() for name in names)]
    return _first_line(counted[0]) if counted else None


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether compiled code ran in the profiled step, and what dynamo and inductor left uncompiled."""
    counters, compiled = records.counters_of(context), context.compiled
    return dataclasses.replace(
        _evidence(context, value),
        graph_breaks=_graph_break_count(context),
        frames_compiled=records.frames_of(context)[1] if compiled else None,
        recompiles=sum(counters.get(records.RECOMPILES, {}).values()) if compiled else None,
    )


def _evidence(context: ModelContext, value: Value) -> EvidenceResult:
    counters, trace = records.counters_of(context), read.recorded(context)
    total, ok = records.frames_of(context)
    ran = isinstance(trace, Trace) and any(event in name for name in trace.names for event in _COMPILED_EVENTS)
    if value == "off":
        return trace if isinstance(trace, EvidenceResult) else _uncompiled(ran, ok)
    if value == AS_BUILT and isinstance(trace, Trace):
        return _as_built(context, ran, counters, total, ok)
    if ok == 0:
        words = f"dynamo compiled 0 of {plural(total, 'frame')}: the step ran eagerly"
        return EvidenceResult(False, words if total else words + _what_the_step_calls(context))
    words = _what_was_compiled(context, counters, total, ok)
    if limit := _recompile_limit(counters, records.messages_of(context)):
        return EvidenceResult(False, f"{words}; the recompile limit was hit and later calls ran eagerly: {limit}")
    if isinstance(trace, EvidenceResult):
        return dataclasses.replace(trace, detail=f"{words}; {trace.detail}")
    if not ran and read.replays_graph(trace) and value not in CUDA_GRAPH_MODES:  # recorded by hand
        triton = sum(kernel.name.startswith("triton_") for kernel in trace.kernels)
        seen = f"a CUDA graph hides the call of compiled code, and {plural(triton, 'kernel')} of Triton's ran in it"
        return EvidenceResult(True if triton else None, f"{words}; {seen}", flag=_partly(context, total - ok, 0))
    if not ran:
        return EvidenceResult(False, f"{words}; no compiled code ran in the profiled step")
    result = EvidenceResult(True, words, flag=_partly(context, total - ok, 0))
    if value in CUDA_GRAPH_MODES:
        result = _cuda_graphs(context, trace, words, total - ok)
    return _benchmarked(context, counters, trace, result) if value in _BENCHMARKING_MODES else result


def _what_the_step_calls(context: ModelContext) -> str:
    if context.facts is None or not context.facts.called:
        return "; if the step calls only parts of the model, name those: Workload(..., compile_targets=(...))"
    if context.facts.misses_targets:
        return f"; it calls no compile target, {_remedy(context.facts.called)}"
    return ""


def _remedy(called: Sequence[str]) -> str:
    names = "".join(f"{name!r}, " for name in called)
    return f"name what it calls: Workload(..., compile_targets=({names.strip() if len(called) == 1 else names[:-2]}))"


def _calls_a_target(scope: Scope, value: Value, others: Mapping[str, Value]) -> str | None:
    facts = scope.workload
    chooses = others.get(SCOPE, "targets") != "targets"  # says itself what it cannot compile
    if value in EAGER or not facts.misses_targets or chooses:
        return None
    return f"would compile nothing: the step calls no compile target, {_remedy(facts.called)}"


def _as_built(
    context: ModelContext, ran: bool, counters: dict[str, dict[str, int]], total: int, ok: int
) -> EvidenceResult:
    # Nothing was applied, so that there is nothing to disprove: what ran gives it its name.
    if not ran:
        words = f"no compiled code ran in the step; dynamo compiled {ok} of {plural(total, 'frame')}"
        return EvidenceResult(True, words, name="as built: eager")
    words = f"the workload compiles itself; {_what_was_compiled(context, counters, total, ok)}"
    return EvidenceResult(True, words, flag=_partly(context, total - ok, 0), name="as built: compiled")


def _uncompiled(ran: bool, ok: int) -> EvidenceResult:
    # The profiled step decides: dynamo counts for the whole process, in which other models may be compiled.
    if ran:
        return EvidenceResult(False, "compiled code ran in the step")
    if ok:
        words = f"no compiled code ran in the step; dynamo compiled {plural(ok, 'frame')} elsewhere in this process"
        return EvidenceResult(True, words)
    return EvidenceResult(True, "dynamo compiled no frame")


def _partly(context: ModelContext, eager_frames: int, graph_skips: int) -> Flag | None:
    """What was left uncompiled or without a CUDA graph, as a flag; None where nothing was."""
    parts = [
        plural(count, one, many)
        for count, one, many in (
            (_graph_break_count(context) or 0, "graph break", "graph breaks"),
            (eager_frames, "frame ran eager", "frames ran eager"),
            (graph_skips, "CUDA graph skipped", "CUDA graphs skipped"),
        )
        if count
    ]
    return PARTLY_COMPILED.flag(", ".join(parts)) if parts else None


def _what_was_compiled(context: ModelContext, counters: dict[str, dict[str, int]], total: int, ok: int) -> str:
    graphs = counters.get("stats", {}).get("unique_graphs", 0)
    words = [f"{plural(ok, 'frame')} compiled to {plural(graphs, 'graph')}"]
    if total > ok:
        skipped = next(iter(counters.get("unimplemented", {})), "")
        words.append(f"{plural(total - ok, 'frame')} fell back to eager: {_first_line(skipped)}")
    breaks = _graph_break_count(context)
    first = f", the first: {_first_line(next(iter(counters['graph_break'])))}" if breaks else ""
    return "; ".join([*words, f"{plural(breaks, 'graph break')}{first}" if breaks else "no graph break"])


def _cuda_graphs(context: ModelContext, trace: Trace, words: str, eager_frames: int) -> EvidenceResult:
    skips = records.counters_of(context).get("inductor", {}).get("cudagraph_skips", 0)
    logged = (_first_line(message) for message in records.messages_of(context) if "cudagraph" in message.lower())
    why = next(logged, "no reason logged")
    if not read.replays_graph(trace):
        if read.is_blind(context, trace):
            return EvidenceResult(None, f"{words}; {read.BLIND}, so whether CUDA graphs were replayed is not known")
        words += f"; no CUDA graph was launched in the step, {plural(skips, 'graph')} skipped: {why}"
        return EvidenceResult(False, words)
    but = f", but {plural(skips, 'graph')} skipped: {why}" if skips else ""
    return EvidenceResult(True, f"{words}; CUDA graphs replayed{but}", flag=_partly(context, eager_frames, skips))


def _benchmarked(
    context: ModelContext, counters: dict[str, dict[str, int]], trace: Trace, result: EvidenceResult
) -> EvidenceResult:
    """`result`, and whether inductor chose kernels by benchmarking: where it cannot, it says so in a warning only."""
    chosen = counters.get("inductor", {}).get("select_algorithm_autotune", 0)
    if chosen:
        return _and(result, True, f"inductor benchmarked the alternatives of {plural(chosen, 'operator')}")
    if context.device.type == "cuda" and not _is_big_gpu(context.device):
        return _and(result, False, "inductor benchmarks alternatives on larger GPUs only: this one has too few SMs")
    if came_from_cache(counters):
        return _and(result, True, "its kernels were chosen by the process that filled the compile cache")
    if context.device.type == "cuda" and not read.compute_operators(trace) and not compute_kernels(trace):
        # Triton's elementwise kernels are tuned more thoroughly in these modes, which no counter tells.
        return _and(result, None, "there was no convolution or matrix product to benchmark alternatives of")
    return _and(result, False, "inductor benchmarked no alternatives of any operator")


def _and(result: EvidenceResult, also: bool | None, words: str) -> EvidenceResult:
    """`result` with a further condition: false where one of the two is, unknown where one of them is."""
    took_effect = False if False in (result.took_effect, also) else also if result.took_effect else None
    return dataclasses.replace(result, took_effect=took_effect, detail=f"{result.detail}; {words}")


def _is_big_gpu(device: torch.device) -> bool:
    """Whether inductor benchmarks alternatives of matrix products on this GPU (68 SMs or more in torch 2.13)."""
    from torch._inductor.utils import is_big_gpu

    return bool(is_big_gpu(device))


_NEEDS_CUDA_GRAPHS = Requirement(device_kinds=("cuda",), why="the mode uses CUDA graphs")


def offers(scope: Scope) -> tuple[Value, ...]:
    """All values; first what the workload's own code does."""
    first = (AS_BUILT,) if scope.workload.compiles_itself else ()
    return tuple(dict.fromkeys((*first, *COMPILE.values)))


def remark(scope: Scope) -> str | None:
    """That the baseline is compiled, where the workload's own code compiles it."""
    if not scope.workload.compiles_itself:
        return None
    return (
        f"The workload's own code calls torch.compile, which is the baseline (compile={AS_BUILT}); compile=off runs "
        "the same model eagerly, and every other value compiles it in place of that."
    )


def _compiles_itself(scope: Scope) -> str | None:
    return None if scope.workload.compiles_itself else "is for a workload whose own code calls torch.compile"


COMPILE = Toggle(
    name="compile",
    summary="torch.compile with inductor, on each of the workload's compile targets.",
    values={
        "off": "eager",
        "default": "fused kernels, shortest compile time",
        "reduce-overhead": "like default, and CUDA graphs replay the kernel launches",
        "max-autotune": "kernels chosen by benchmarking alternatives, and CUDA graphs",
        "max-autotune-no-cudagraphs": "kernels chosen by benchmarking alternatives",
        AS_BUILT: "what the workload's own code compiles, as it does",
    },
    stage=Stage.COMPILE,
    offers=offers,
    reference=lambda _: "off",
    remark=remark,
    undo=lambda _: "# take torch.compile of its own out of the code",
    compiles=(AS_BUILT, "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
    replays_graphs=CUDA_GRAPH_MODES,
    picks_by_time=_BENCHMARKING_MODES,
    requires={
        AS_BUILT: Requirement(check=_compiles_itself),
        "reduce-overhead": _NEEDS_CUDA_GRAPHS,
        "max-autotune": _NEEDS_CUDA_GRAPHS,
    },
    check=_calls_a_target,
    apply=apply,
    evidence=evidence,
    usage=lambda value, scope: usage_beside(value, scope, {}),
    usage_beside=usage_beside,
    claims=("vae-guide", "cytodl", "bf16-guide", "mmrec-cpu"),
    source="PyTorch documentation: torch.compile; CUDAGraph Trees; Dealing with Recompilations",
)
