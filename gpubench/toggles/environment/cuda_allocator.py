"""How torch's allocator manages GPU memory, as environment variables set it before a process starts."""

from __future__ import annotations

import os
import re
import shlex
from typing import TYPE_CHECKING, Any

from gpubench.report.model import Value
from gpubench.toggles.toggle import Conflict, EvidenceResult, Scope, Stage, Toggle

if TYPE_CHECKING:
    from gpubench.toggles.model_context import ModelContext

# The second name is the new one. Versions 2.9 to 2.11 do not read all settings from it, older ones none.
_NAMES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
_THRESHOLD = 0.8  # the example of torch's documentation
_SETTINGS: dict[str, dict[str, str]] = {
    "expandable-segments": {"expandable_segments": "True"},
    "gc-threshold": {"garbage_collection_threshold": str(_THRESHOLD)},
    "async": {"backend": "cudaMallocAsync"},
}
_OURS = frozenset(name for settings in _SETTINGS.values() for name in settings)
_NEEDS_A_LIMIT = "torch.cuda.set_per_process_memory_fraction(1.0)"
_MIB = 2**20
_EXACT = 1e-6  # torch keeps the threshold as a number in floating point


def on_gpu(scope: Scope) -> str | None:
    """Applies on a GPU."""
    return None if scope.device.kind == "cuda" else f"{scope.device.name} has no memory that CUDA allocates"


def _pairs(text: str) -> list[tuple[str, str]]:
    parts = (part.partition(":") for part in re.split(r",(?![^\[]*\])", text))  # a list in brackets is one setting
    return [(name.strip(), setting.strip()) for name, _, setting in parts if name.strip()]


def _merged(value: str, own: str) -> str:
    """The variables' text for `value`, with whatever else the user has set in them."""
    kept = {name: setting for name, setting in _pairs(own) if name not in _OURS}
    return ",".join(f"{name}:{setting}" for name, setting in (kept | _SETTINGS.get(value, {})).items())


def environment(value: Value) -> dict[str, str]:
    """The variables to change for `value`; whatever else the user set in them is kept."""
    own = {name: os.environ.get(name, "") for name in _NAMES}
    together = ",".join(filter(None, own.values()))
    if value == "default" and not _OURS & {name for name, _ in _pairs(together)}:
        return {}
    wanted = _merged(str(value), together)
    return {name: wanted for name, text in own.items() if text != wanted}


def apply(context: ModelContext, value: Value) -> None:
    """Gives the process all of the device's memory as its limit: without one, torch ignores the threshold."""
    import torch

    if value != "gc-threshold":
        return
    limit = getattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0)(context.device)
    torch.cuda.set_per_process_memory_fraction(limit, context.device)


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Which allocator torch says it has, with which settings, and whether its segments can grow."""
    import torch

    if missing := environment(value):
        names = ", ".join(f"{name} should be {text!r}" for name, text in missing.items())
        return EvidenceResult(False, f"the process's environment differs: {names}")
    backend = torch.cuda.memory.get_allocator_backend()
    words = f"torch's allocator of GPU memory is {backend}"
    if value == "async" or backend != "native":  # which keeps no snapshot
        return EvidenceResult(value == "default" or (backend == "cudaMallocAsync") == (value == "async"), words)
    snapshot: dict[str, Any] = torch.cuda.memory._snapshot(context.device)
    settings, segments = snapshot.get("allocator_settings", {}), snapshot.get("segments", [])
    growing = sum(bool(segment.get("is_expandable")) for segment in segments)
    held = sum(segment.get("total_size", 0) for segment in segments) // _MIB
    threshold = float(settings.get("garbage_collection_threshold", 0.0))
    words += f"; {growing} of {len(segments)} segments, {held} MiB in all, can grow"
    words += f"; its threshold for giving memory back is {threshold:g}"
    if value == "expandable-segments":
        return EvidenceResult(growing > 0 if segments else None, words)
    # By default there is nothing to disprove: no variable of ours is set, and torch may have other defaults.
    return EvidenceResult(value == "default" or abs(threshold - _THRESHOLD) < _EXACT, words)


def _usage(value: Value, _: Scope | None) -> str:
    text = _merged(str(value), "")
    if not text:
        return f"unset {' '.join(_NAMES)}"
    found = [f"export {name}={shlex.quote(text)}" for name in _NAMES]
    if value == "gc-threshold":
        found.append(f"# in Python, since torch ignores the threshold without a limit: {_NEEDS_A_LIMIT}")
    return "\n".join(found)


CUDA_ALLOCATOR = Toggle(
    name="cuda_allocator",
    summary="The allocator of GPU memory, configured before the process starts.",
    values={
        "default": "torch's own, which keeps blocks of the sizes that were asked for",
        "expandable-segments": "torch's own, with segments that grow, so that less is left over between blocks",
        "gc-threshold": f"torch's own, which gives unused blocks back once {_THRESHOLD:.0%} of the memory are in use",
        "async": "CUDA's cudaMallocAsync",
    },
    stage=Stage.ENVIRONMENT,
    applies=on_gpu,
    conflicts=(
        Conflict(
            value="async",
            other="compile",
            other_values=("reduce-overhead", "max-autotune"),
            reason="inductor's CUDA graphs need memory pools that cudaMallocAsync does not have",
        ),
    ),
    environment=environment,
    apply=apply,
    evidence=evidence,
    usage=_usage,
    claims=("bf16-guide",),
    source="PyTorch documentation: CUDA semantics, Optimizing memory usage with PYTORCH_ALLOC_CONF",
)
