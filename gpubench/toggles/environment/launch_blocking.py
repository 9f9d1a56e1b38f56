"""Whether a launch of a GPU kernel waits until the kernel has ended: CUDA_LAUNCH_BLOCKING, meant for debugging.

The row with it tells what the host's running ahead of the GPU brings. CUDA reads the variable when it is initialized.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from gpubench.measure.start_environment import variable_at_start
from gpubench.report.model import Value
from gpubench.text import kind_and_message
from gpubench.toggles.toggle import EvidenceResult, Requirement, Scope, Stage, Toggle

if TYPE_CHECKING:
    import torch

    from gpubench.toggles.model_context import ModelContext

VARIABLE = "CUDA_LAUNCH_BLOCKING"
_CYCLES = 20_000_000  # of a kernel that only waits: 10 to 20 ms at the clocks of GPUs, a launch takes some 10 µs
_BLOCKED = 0.5  # of the kernel's time: a launch that waits takes nearly all of it, one that does not some thousandth


def on_cuda(scope: Scope) -> str | None:
    """Applies on a CUDA device."""
    return None if scope.device.kind == "cuda" else f"nothing is launched on {scope.device.name}"


def environment(value: Value) -> dict[str, str]:
    """The variable to change for `value`."""
    own = os.environ.get(VARIABLE, "")
    if value == "on":
        return {} if own == "1" else {VARIABLE: "1"}
    return {} if own in ("", "0") else {VARIABLE: "0"}


def _launch_share(device: torch.device) -> float:
    """The share of a kernel's time that its launch takes the host, between 0 and 1."""
    import torch

    torch.cuda._sleep(1)  # loads the kernel
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    torch.cuda._sleep(_CYCLES)
    launched = time.perf_counter()
    torch.cuda.synchronize(device)
    return (launched - start) / (time.perf_counter() - start)


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether the process started with the variable, and whether the launch of a trial kernel waited for its end."""
    found = variable_at_start(VARIABLE)
    wanted = value == "on"
    words = f"the process started with {VARIABLE} {'unset' if found is None else f'at {found!r}'}"
    if (found not in (None, "", "0")) != wanted:
        return EvidenceResult(False, words)
    try:
        share = _launch_share(context.device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        return EvidenceResult(None, f"{words}; no trial kernel could be launched: {kind_and_message(error)}")
    words += f"; the launch of a trial kernel took the host {share:.0%} of the kernel's time"
    return EvidenceResult((share > _BLOCKED) == wanted, words)


_CUDA_ONLY = Requirement(device_kinds=("cuda",))

LAUNCH_BLOCKING = Toggle(
    name="launch_blocking",
    summary="The environment variable with which each launch of a GPU kernel waits for its end.",
    values={
        "off": "the host goes on while the GPU works",
        "on": "CUDA_LAUNCH_BLOCKING=1: the host waits for each kernel, as it does while errors are looked for",
    },
    stage=Stage.ENVIRONMENT,
    applies=on_cuda,
    requires={"off": _CUDA_ONLY, "on": _CUDA_ONLY},
    environment=environment,
    evidence=evidence,
    usage=lambda value, _: f"export {VARIABLE}=1" if value == "on" else f"unset {VARIABLE}",
    claims=("bf16-guide",),
    source="CUDA C++ Programming Guide: CUDA environment variables, CUDA_LAUNCH_BLOCKING",
)
