"""Giving the memory that torch's CUDA allocator keeps back to the device, once before the timed steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpubench.report.model import Value
from gpubench.text import plural
from gpubench.toggles.printed import run_lines
from gpubench.toggles.toggle import EvidenceResult, Scope, Stage, Toggle
from gpubench.units import format_bytes

if TYPE_CHECKING:
    import torch

    from gpubench.toggles.model_context import ModelContext

_SEEN = "empty_cache.seen"  # note: what the allocator counted around the call
_USAGE = "torch.cuda.empty_cache()"


@dataclass(frozen=True)
class _Seen:
    before: dict[str, int]
    after: dict[str, int]

    def more(self, counter: str) -> int:
        return self.after.get(counter, 0) - self.before.get(counter, 0)


def on_gpu(scope: Scope) -> str | None:
    """Applies on a GPU."""
    return None if scope.device.kind == "cuda" else f"torch keeps no memory of its own on {scope.device.name}"


def _stats(device: torch.device) -> dict[str, int]:
    import torch

    return dict(torch.cuda.memory_stats(device))


def apply(context: ModelContext, value: Value) -> None:
    """Empties the cache when the step is warm: compiling and choosing kernels have left most of what is in it."""
    if value == "off":
        return

    def empty() -> None:
        before = _stats(context.device)
        run_lines(_USAGE)
        context.notes[_SEEN] = _Seen(before, _stats(context.device))

    context.when_warm.append(empty)


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether the cache was emptied, and what torch's allocator counted as given back by that."""
    seen = context.notes.get(_SEEN)
    if seen is None:
        return EvidenceResult(value == "off", "the cache was not emptied before the timed steps")
    freed = seen.more("reserved_bytes.all.freed")
    kept = seen.before.get("reserved_bytes.all.current", 0) - seen.before.get("allocated_bytes.all.current", 0)
    words = f"emptied once: {format_bytes(freed)} of {format_bytes(max(0, kept))} that were free in it given back"
    words += f", in {plural(seen.more('num_device_free'), 'call')} of the driver"
    return EvidenceResult(value == "on", words)


EMPTY_CACHE = Toggle(
    name="empty_cache",
    summary="torch.cuda.empty_cache() once, between the warm-up and the timed steps.",
    values={
        "off": "the allocator keeps what the warm-up has left",
        "on": "the allocator gives it back; the steps allocate anew what they need",
    },
    stage=Stage.BACKEND,
    applies=on_gpu,
    apply=apply,
    evidence=evidence,
    usage=lambda value, _: (
        f"{_USAGE}  # once, after the warm-up" if value == "on" else "# empty_cache: off, so the cache is left as it is"
    ),
    claims=("vae-guide",),
    source="PyTorch documentation: torch.cuda.empty_cache; CUDA semantics, Memory management",
)
