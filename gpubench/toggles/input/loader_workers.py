"""How many processes read the batches of a DataLoader, beside the one that computes."""

from __future__ import annotations

import multiprocessing
import os
from typing import TYPE_CHECKING

from gpubench.report.model import Value
from gpubench.text import plural
from gpubench.toggles.input.pipeline import DRAWS, Draws, has_dataset
from gpubench.toggles.printed import run_lines
from gpubench.toggles.toggle import EvidenceResult, Scope, Stage, Toggle

if TYPE_CHECKING:
    from gpubench.toggles.model_context import ModelContext


def _usage(value: Value, _: Scope | None = None) -> str:
    persistent = ', "persistent_workers": True' if value else ""
    return f'loading |= {{"num_workers": {value}{persistent}}}'


def apply(context: ModelContext, value: Value) -> None:
    """Adds the workers to the DataLoader's arguments."""
    run_lines(_usage(value), loading=context.loading)


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether the batches that steps drew were read in so many processes, which end with this one."""
    draws = context.notes.get(DRAWS)
    if not isinstance(draws, Draws) or not draws.drawn:
        return EvidenceResult(value == 0, "no step drew its batch from a loader")
    readers = set(draws.readers)
    words = f"{plural(draws.drawn, 'batch', 'batches')} came from {plural(len(readers), 'process', 'processes')}"
    if readers == {os.getpid()}:
        return EvidenceResult(value == 0, f"{words}, the one that computes")
    children = {child.pid for child in multiprocessing.active_children() if child.daemon}
    if os.getpid() in readers or not readers <= children:
        return EvidenceResult(False, f"{words}, of which {len(readers - children)} are no workers of this one")
    groups = {os.getpgid(reader) for reader in readers}
    words += f", all workers of this one {'in' if groups == {os.getpgrp()} else 'outside of'} its process group"
    # Workers take turns: the first batches show fewer of them than there are.
    return EvidenceResult(groups == {os.getpgrp()} and len(readers) == min(int(value), draws.drawn), words)


_FROM_A_LOADER = {"pipeline": ("loader",)}

LOADER_WORKERS = Toggle(
    name="loader_workers",
    summary="Processes that read batches of a DataLoader ahead of the steps.",
    values={
        0: "the process that computes reads each batch in its step",
        1: "one more process, which lives on; its memory is not in the row's",
        2: "two more processes",
        4: "four more processes",
    },
    stage=Stage.PROBLEM,
    applies=has_dataset,
    prerequisites={1: _FROM_A_LOADER, 2: _FROM_A_LOADER, 4: _FROM_A_LOADER},
    after=("pipeline",),
    apply=apply,
    evidence=evidence,
    usage=_usage,
    claims=("cytodl",),
    source="PyTorch documentation: torch.utils.data, Single- and Multi-process Data Loading",
)
