"""How many batches each worker of a DataLoader has read ahead of the step that gets them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpubench.report.model import Value
from gpubench.text import plural
from gpubench.toggles.input.pipeline import DRAWS, Draws, has_dataset
from gpubench.toggles.printed import run_lines
from gpubench.toggles.toggle import EvidenceResult, Scope, Stage, Toggle

if TYPE_CHECKING:
    from gpubench.toggles.model_context import ModelContext


def _usage(value: Value, _: Scope | None = None) -> str:
    return f'loading["prefetch_factor"] = {value}'


def apply(context: ModelContext, value: Value) -> None:
    """Adds it to the DataLoader's arguments; the baseline is torch's own choice, and an error without workers."""
    if value != next(iter(PREFETCH_FACTOR.values)):
        run_lines(_usage(value), loading=context.loading)


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether so many batches for each worker had been asked of the loader beyond those that steps got."""
    draws, plain = context.notes.get(DRAWS), value == next(iter(PREFETCH_FACTOR.values))
    workers = context.loading.get("num_workers", 0)
    if not isinstance(draws, Draws) or not draws.drawn or not workers:
        return EvidenceResult(plain, "no worker of a loader reads ahead")
    ahead = draws.asked - draws.drawn
    words = f"{plural(ahead, 'batch', 'batches')} ahead of the steps with {plural(workers, 'worker')}"
    return EvidenceResult(ahead == int(value) * workers, words)


_WITH_WORKERS = {"loader_workers": (2, 1, 4)}

PREFETCH_FACTOR = Toggle(
    name="prefetch_factor",
    summary="Batches that each worker of a DataLoader reads ahead.",
    values={
        2: "torch's own choice",
        4: "twice as many: more memory, and slow items are waited for less often",
        8: "four times as many",
    },
    stage=Stage.PROBLEM,
    applies=has_dataset,
    prerequisites={4: _WITH_WORKERS, 8: _WITH_WORKERS},
    after=("loader_workers",),
    apply=apply,
    evidence=evidence,
    usage=_usage,
    source="PyTorch documentation: torch.utils.data.DataLoader, prefetch_factor",
)
