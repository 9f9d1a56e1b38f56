"""Whether torch begins with TF32 in matrix products: TORCH_ALLOW_TF32_CUBLAS_OVERRIDE, as NVIDIA's containers set it.

Torch reads the variable once, when it is imported. What code sets later holds, so that only the precisions that leave
torch's own settings as they are have it. Where the user's environment sets it already, that counts as the workload's
own setting (`worker/process_settings.py`), and there is nothing to choose.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from gpubench.measure.start_environment import variable_at_start
from gpubench.report.model import Value
from gpubench.toggles import fp32_flags
from gpubench.toggles.tf32_probe import tf32_in_use
from gpubench.toggles.toggle import AS_BUILT, EvidenceResult, Requirement, Scope, Stage, Toggle

if TYPE_CHECKING:
    from gpubench.toggles.model_context import ModelContext


def multiplies_on_cuda(scope: Scope) -> str | None:
    """Applies on a CUDA device where the user's own environment has not made the choice."""
    if scope.device.kind != "cuda":
        return f"TF32 is a format of NVIDIA's GPUs, this is {scope.device.name}"
    if os.environ.get(fp32_flags.OVERRIDE) == "1":
        return f"{fp32_flags.OVERRIDE}=1 is set here already, which precision={AS_BUILT} measures"
    return None


def environment(value: Value) -> dict[str, str]:
    """The variable, where `value` asks for it."""
    return {fp32_flags.OVERRIDE: "1"} if value == "on" else {}


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether the process started with the variable, and whether a matrix product is rounded as TF32 is."""
    found = variable_at_start(fp32_flags.OVERRIDE)
    words = f"the process started with {fp32_flags.OVERRIDE} {'unset' if found is None else f'at {found!r}'}"
    if (found == "1") != (value == "on"):
        return EvidenceResult(False, words)
    if value == "unset":
        return EvidenceResult(True, words)
    permitted = fp32_flags.state(context.device.type).get("cuda.matmul")
    words += f"; {fp32_flags.setting('cuda.matmul')} is {permitted}"
    if permitted != "tf32":
        return EvidenceResult(False, f"{words}, so that later code has taken it back")
    probe = tf32_in_use(context.device)
    return EvidenceResult(probe.matmul, f"{words}; {probe.detail}")


_CUDA_ONLY = Requirement(device_kinds=("cuda",))

TF32_OVERRIDE = Toggle(
    name="tf32_override",
    summary="The environment variable with which torch begins with TF32 in matrix products.",
    values={
        "unset": "torch begins with fp32 in matrix products",
        "on": "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1: torch begins with TF32 in matrix products",
    },
    stage=Stage.ENVIRONMENT,
    applies=multiplies_on_cuda,
    requires={
        "unset": _CUDA_ONLY,
        "on": Requirement(
            device_kinds=("cuda",), compute_capability=(8, 0), why="TF32 needs tensor cores of Ampere or newer"
        ),
    },
    # Every other precision sets torch's permissions itself, whatever torch began with.
    prerequisites={"on": {"precision": ("torch-default", AS_BUILT)}},
    environment=environment,
    evidence=evidence,
    usage=lambda value, _: f"export {fp32_flags.OVERRIDE}=1" if value == "on" else f"unset {fp32_flags.OVERRIDE}",
    tolerance={"on": 0.01},  # of TF32: see precision
    claims=("bf16-guide",),
    source="PyTorch documentation: CUDA environment variables, TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)
