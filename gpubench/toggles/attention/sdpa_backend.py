"""The implementation behind scaled_dot_product_attention: torch's own choice for each call, or one for all."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpubench.measure.trace import Trace, trace_step
from gpubench.report.model import Value
from gpubench.toggles import evidence as read
from gpubench.toggles.attention.replaced import has_attention
from gpubench.toggles.eager_pass import run_eagerly
from gpubench.toggles.printed import run_lines
from gpubench.toggles.toggle import AS_BUILT, EvidenceResult, Requirement, Scope, Stage, Toggle

if TYPE_CHECKING:
    from gpubench.toggles.model_context import ModelContext

_ENTERED: list[Any] = []  # contexts of this process: one that nothing holds ends
_MEMBERS = {
    "math": "MATH",
    "flash": "FLASH_ATTENTION",
    "efficient": "EFFICIENT_ATTENTION",
    "cudnn": "CUDNN_ATTENTION",
}
_HALF = ("bf16-autocast", "bf16-weights", "fp16-autocast", "fp16-weights")
_HALF_ON_A_GPU = {"precision": (*_HALF, AS_BUILT, "fp32")}  # the last is a CPU's, where every dtype does
_NO_OPERATOR = "no operator of scaled_dot_product_attention is visible"


def _lines(value: Value) -> str:
    if value == "auto":
        return "# sdpa_backend: what torch chooses for each call"
    chosen = f"sdpa_kernel(SDPBackend.{_MEMBERS[str(value)]})"
    return f"""from torch.nn.attention import SDPBackend, sdpa_kernel
attention = {chosen}
attention.__enter__()  # for the whole process; or around each step: with {chosen}"""


def apply(context: ModelContext, value: Value) -> None:
    """Permits that implementation alone, in the backward pass too."""
    if value != "auto":
        _ENTERED.append(run_lines(_lines(value))["attention"])


def _permitted() -> tuple[str, ...]:
    """What torch may choose from in this process."""
    import torch

    backends = torch.backends.cuda  # they count on a CPU too
    flags = {
        "math": backends.math_sdp_enabled(),
        "flash": backends.flash_sdp_enabled(),
        "efficient": backends.mem_efficient_sdp_enabled(),
        "cudnn": backends.cudnn_sdp_enabled() if hasattr(backends, "cudnn_sdp_enabled") else False,
    }
    return tuple(name for name, permitted in flags.items() if permitted)


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether the attention of the profiled step ran in that implementation and in no other."""
    trace = read.recorded(context)
    if isinstance(trace, EvidenceResult):
        return trace
    backends = read.attention_backends(trace)
    words = f"attention ran in {' and '.join(backends)}" if backends else _NO_OPERATOR
    if value == "auto":  # nothing was changed; the workload's own code may have chosen
        return EvidenceResult(True, words)
    if (permitted := _permitted()) != (value,):
        return EvidenceResult(False, f"torch may choose from {', '.join(permitted) or 'nothing'}; {words}")
    if any(backend != value for backend in backends):
        return EvidenceResult(False, f"{words}: the step's own code chooses for itself, or calls another function")
    if backends:
        return EvidenceResult(True, words)
    if value == "math" and (context.compiled or read.replays_graph(trace)):
        return _decomposed(context)
    if read.is_blind(context, trace):
        return EvidenceResult(None, f"{words}; {read.BLIND}")
    return EvidenceResult(False, words)


def _decomposed(context: ModelContext) -> EvidenceResult:
    # Compiled code takes `math` apart and graphs hide operators: what an eager pass calls is what was compiled.
    problems: list[str] = []
    seen = _traced(context, problems)
    if problems:
        return EvidenceResult(None, f"{_NO_OPERATOR}; {problems[0]}")
    backends = read.attention_backends(seen)
    words = f"no fused attention ran in the step, and one more pass, in eager code, called {' and '.join(backends)}"
    if not backends:
        words = f"{_NO_OPERATOR}, in one more pass, in eager code, neither"
    return EvidenceResult(backends == ("math",), words)


def _traced(context: ModelContext, problems: list[str]) -> Trace:
    def once() -> None:
        if problem := run_eagerly(context):
            problems.append(problem)

    return trace_step(once, cuda=False)


def _needs_half(scope: Scope, value: Value, others: Mapping[str, Value]) -> str | None:
    """Flash attention and cuDNN's compute in 16 bits alone on a GPU."""
    precision = others.get("precision")
    if value not in ("flash", "cudnn") or scope.device.kind == "cpu" or precision is None or precision in _HALF:
        return None
    own = {*scope.workload.dtypes, *scope.workload.autocast}
    if precision == AS_BUILT and own & {"bf16", "fp16"}:
        return None
    return f"computes in 16 bits only on a GPU, and precision={precision} does not"


_AMPERE = Requirement(compute_capability=(8, 0), torch_version=(2, 3))

SDPA_BACKEND = Toggle(
    name="sdpa_backend",
    summary="The implementation behind torch.nn.functional.scaled_dot_product_attention.",
    values={
        "auto": "torch's own choice for each call, by dtype, shapes and mask",
        "math": "plain matrix products and a softmax, with the whole matrix of scores in memory",
        "flash": "flash attention: block by block, in 16 bits on a GPU, where it takes no mask",
        "efficient": "memory-efficient attention: block by block, in fp32 too and with masks",
        "cudnn": "cuDNN's fused attention, in 16 bits",
    },
    stage=Stage.BACKEND,
    applies=has_attention,
    requires={
        "math": Requirement(torch_version=(2, 3), why="torch.nn.attention came with it"),
        "flash": _AMPERE,
        "efficient": Requirement(device_kinds=("cuda",), compute_capability=(5, 0), torch_version=(2, 3)),
        "cudnn": dataclasses.replace(_AMPERE, device_kinds=("cuda",), torch_version=(2, 5)),
    },
    prerequisites={"flash": _HALF_ON_A_GPU, "cudnn": {"precision": (*_HALF, AS_BUILT)}},
    idle_when={"xformers_attention": ("on",)},
    check=_needs_half,
    apply=apply,
    evidence=evidence,
    usage=lambda value, _: _lines(value),
    claims=("vae-guide", "cytodl"),
    source="PyTorch documentation: torch.nn.attention.sdpa_kernel; torch.nn.functional.scaled_dot_product_attention",
)
