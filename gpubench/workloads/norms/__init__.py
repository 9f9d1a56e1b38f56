"""GroupNorm and the SiLU after it: two operators of torch, or one of our own (the toggle `norm_silu`)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from gpubench.report.model import Value
from gpubench.text import plural, times
from gpubench.toggles.evidence import recorded, replays_graph
from gpubench.toggles.model_context import ModelContext
from gpubench.toggles.toggle import EvidenceResult, Requirement, Scope, Stage, Toggle
from gpubench.workloads.norms import native
from gpubench.workloads.workload import Options

NAME = "norm_silu"
OPERATOR = "gpubench::norm_silu"  # of `fused`
KERNEL = "_norm_silu_normalise"  # of it on a GPU, where a CUDA graph hides operators


def norm_silu(norm: nn.GroupNorm, x: Tensor, way: str) -> Tensor:
    """silu(norm(x)) of [B, C, *S], as two operators ("torch") or as one ("fused")."""
    if way == "torch":
        return F.silu(norm(x))
    return native.norm_silu(x, norm.weight, norm.bias, norm.num_groups, norm.eps)


class NormSilu(nn.GroupNorm):
    """GroupNorm and SiLU as one operator."""

    norm_silu = "fused"

    def forward(self, x: Tensor) -> Tensor:
        return norm_silu(self, x, self.norm_silu)


def with_norm_silu(model: nn.Module, options: Options) -> nn.Module:
    """`model` with its norms as the toggle says: modules that have an attribute `norm_silu`, and pairs in a sequence.

    Its parameters keep their names. Raises GpubenchError where the operator cannot be made ready.
    """
    if options.get(NAME, "torch") == "torch":
        return model
    native.prepare()
    for module in [*model.modules()]:
        if hasattr(module, NAME):
            setattr(module, NAME, "fused")
        if isinstance(module, nn.Sequential):
            for place in range(len(module) - 1):
                norm = module[place]
                if type(norm) is nn.GroupNorm and isinstance(module[place + 1], nn.SiLU):
                    module[place], module[place + 1] = _fused(norm), nn.Identity()
    return model


def _fused(norm: nn.GroupNorm) -> NormSilu:
    fused = NormSilu(norm.num_groups, norm.num_channels, norm.eps, device="meta")  # draws no random numbers
    fused.weight, fused.bias = norm.weight, norm.bias
    return fused


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether the blocks compute it so, and the operator of our own ran only where it should."""
    trace = recorded(context)
    if isinstance(trace, EvidenceResult):
        return trace
    found = [str(getattr(module, NAME)) for module in context.model.modules() if hasattr(module, NAME)]
    ran = sum(operator.name == OPERATOR for operator in trace.operators)
    words = f"{plural(len(found), 'part')} of the model compute it by {' and '.join(sorted(set(found)))}"
    words += f"; {OPERATOR} ran {times(ran)} in the step"
    if replays_graph(trace):
        kernels = sum(KERNEL in kernel.name for kernel in trace.kernels)
        words += f", which a CUDA graph hides, and {KERNEL} {times(kernels)}"
        ran += kernels
    return EvidenceResult(set(found) == {value} and (ran > 0) == (value == "fused"), words)


def _can_be_fused(scope: Scope) -> str | None:
    """The operator of our own can be built here."""
    reason = native.unavailable(scope.device.kind)
    return reason and f"cannot be computed here: {reason.rstrip('.')}"


NORM_SILU = Toggle(
    name=NAME,
    summary="GroupNorm and the SiLU after it as two operators or as one.",
    values={
        "torch": "two operators, with the normalised tensor in memory between them",
        "fused": "one of our own: C++ with OpenMP and SIMD on a CPU, Triton on a GPU; the backward pass computes anew",
    },
    stage=Stage.MODEL,
    requires={"fused": Requirement(check=_can_be_fused)},
    usage=lambda value, _: f'options["{NAME}"] = "{value}"  # for the workload\'s build',
    evidence=evidence,
    claims=("vae-guide",),
    source="apex.contrib.group_norm of NVIDIA's Apex, whose GroupNorm has act='silu'",
)
