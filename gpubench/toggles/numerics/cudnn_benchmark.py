"""cuDNN's choice of convolution algorithm: by its heuristics, or by timing the candidates at first use."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gpubench.report.model import Value
from gpubench.text import plural
from gpubench.toggles import kernels
from gpubench.toggles.evidence import convolutions, recorded
from gpubench.toggles.toggle import EvidenceResult, Requirement, Scope, Stage, Toggle

if TYPE_CHECKING:
    from gpubench.toggles.model_context import ModelContext

_OPERATOR = "aten::cudnn_convolution"
_KERNEL = re.compile(r"cudnn|xmma_(fprop|dgrad|wgrad)|implicit_(gemm|convolve)|winograd", re.IGNORECASE)


def cudnn_convolves(scope: Scope) -> str | None:
    """Applies to convolutions on a CUDA device."""
    if scope.device.kind != "cuda":
        return f"cuDNN needs a CUDA device, this is {scope.device.name}"
    if not scope.workload.convolution_dimensions:
        return f"workload {scope.workload.name} has no convolution"
    return None


def apply(context: ModelContext, value: Value) -> None:
    """Sets the flag; cuDNN then times its algorithms at the first call of each shape."""
    import torch

    torch.backends.cudnn.benchmark = value == "on"


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether the flag is set, and whether convolutions of the profiled step ran in cuDNN."""
    import torch

    flag, wanted = torch.backends.cudnn.benchmark, value == "on"
    words = f"torch.backends.cudnn.benchmark is {flag}"
    if flag != wanted:
        return EvidenceResult(False, words)
    available: bool = torch.backends.cudnn.is_available()
    if not available or not torch.backends.cudnn.enabled:
        return EvidenceResult(not wanted, f"{words}, but cuDNN is not available or not enabled")
    trace = recorded(context)
    if isinstance(trace, EvidenceResult):
        return trace
    operators = sum(operator.name.startswith(_OPERATOR) for operator in trace.operators)
    ran = sum(bool(_KERNEL.search(kernel.name)) for kernel in trace.kernels)
    words += f"; {plural(operators, 'cuDNN convolution operator')} and {plural(ran, 'cuDNN kernel')} ran in the step"
    words += f"; {kernels.algorithms(trace)}"
    if operators or ran or not wanted:
        return EvidenceResult(True, words)
    # Visible convolutions that are not cuDNN's: the flag changed nothing. Hidden ones could be either.
    if convolutions(trace):
        return EvidenceResult(False, words)
    return EvidenceResult(None, f"{words}; no convolution is visible, so whether cuDNN ran is unknown")


_CUDA_ONLY = Requirement(device_kinds=("cuda",))

CUDNN_BENCHMARK = Toggle(
    name="cudnn_benchmark",
    summary="cuDNN times its convolution algorithms for each new input shape and keeps the fastest.",
    values={
        "off": "the algorithm that cuDNN's heuristics choose",
        "on": "the fastest algorithm in a trial; the first call for each shape takes longer",
    },
    stage=Stage.BACKEND,
    applies=cudnn_convolves,
    picks_by_time=("on",),
    requires={"off": _CUDA_ONLY, "on": _CUDA_ONLY},
    apply=apply,
    evidence=evidence,
    usage=lambda value, _: f"torch.backends.cudnn.benchmark = {value == 'on'}",
    claims=("vae-guide", "cytodl", "bf16-guide"),
    source="PyTorch documentation: torch.backends.cudnn.benchmark",
)
