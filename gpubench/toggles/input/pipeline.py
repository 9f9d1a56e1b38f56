"""Where a step's batch comes from: the device itself, the host's memory, or a DataLoader."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpubench.report.model import Value
from gpubench.toggles.evidence import recorded
from gpubench.toggles.toggle import EvidenceResult, Requirement, Scope, Stage, Toggle
from gpubench.workloads.batch import dataset_of, items_of, tensors

if TYPE_CHECKING:
    from gpubench.toggles.model_context import ModelContext

DRAWS = "pipeline.draws"  # note: what the loader did, a `Draws`
_DRAWN = "enumerate(DataLoader)"  # what torch's own loader calls each batch in a trace
_COPY = "HtoD"

_USAGE: dict[Value, str] = {
    "resident": "# pipeline: the batches are on the device before the loop",
    "host": "# pipeline: move each batch in its step: x.to(device)",
    "loader": """loading = {"batch_size": batch_size}  # arguments of the DataLoader
# before the loop: loader = torch.utils.data.DataLoader(dataset, **loading)
# in each step: the next batch of the loader, moved to the device""",
}


@dataclass
class Draws:
    """What the loader of a step was given and gave."""

    loader: Iterator[Any] | None = None  # made in the first step, when all its arguments are known
    asked: int = 0  # batches that it knows the indices of
    drawn: int = 0  # batches that steps got
    readers: Counter[int] = field(default_factory=Counter)  # process -> batches among them that it read


def has_dataset(scope: Scope) -> str | None:
    """Applies to a workload that has a dataset."""
    return None if scope.workload.dataset else "needs a workload with a dataset"


def apply(context: ModelContext, value: Value) -> None:
    """Leaves the batches on the host, and for `loader` reads each anew."""
    if value == "resident":
        return
    context.inputs_resident = False
    if value == "loader":
        context.fetched_anew = True
        context.step.fetch = _loaded(context)


def _loaded(context: ModelContext) -> Callable[[int], Any]:
    """A `fetch` that draws the same batches as the resident ones, in turn, from a DataLoader."""
    draws = context.notes[DRAWS] = Draws()
    resident, count = context.step.fetch, len(context.batches)

    def fetch(index: int) -> Any:
        if index >= count:  # one that is never timed, of a check
            return resident(index)
        if draws.loader is None:
            draws.loader = _loader(context, draws)
        while True:
            (reader, batch), number = next(draws.loader), draws.drawn % count
            draws.drawn += 1
            draws.readers[reader] += 1
            if number == index:  # the steps go in turn, so that none is drawn in vain while they are timed
                return batch

    return fetch


def _loader(context: ModelContext, draws: Draws) -> Iterator[Any]:
    """Each batch with the process that read it, the timed ones over and over."""
    import torch
    from torch.utils.data import DataLoader

    make, size, count = context.workload.dataset, context.batch_size, len(context.batches)
    if make is None:
        raise RuntimeError(f"workload {context.workload.name} has no dataset")
    dataset = dataset_of(make)

    class InTurn:
        """The indices of each batch."""

        def __iter__(self) -> Iterator[list[int]]:
            while True:
                number = context.first_batch + draws.asked % count
                draws.asked += 1
                yield items_of(number, size, len(dataset))

    return iter(
        DataLoader(
            dataset,
            batch_sampler=InTurn(),
            collate_fn=_read,
            generator=torch.Generator(),  # its seed for the workers must not come from the step's random numbers
            **context.loading,
        )
    )


def _read(items: list[Any]) -> tuple[int, Any]:
    from torch.utils.data import default_collate

    return os.getpid(), default_collate(items)


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether the profiled step drew its batch from a loader and, on a GPU, copied it from the host."""
    trace = recorded(context)
    if isinstance(trace, EvidenceResult):
        return trace
    drawn = any(name.startswith(_DRAWN) for name in trace.names)
    copies = sum(_COPY in copy for copy in trace.copies)
    places = {str(tensor.device) for batch in context.batches for tensor in tensors(batch)}
    words = f"the batches are on {' and '.join(sorted(places))}"
    words += f", the step {'drew' if drawn else 'did not draw'} one from a loader"
    if context.device.type == "cuda":
        words += f" and copied {copies} times from the host"
    copied = value == "resident" or context.device.type != "cuda" or copies > 0  # a resident step may copy for itself
    return EvidenceResult(drawn == (value == "loader") and copied, words)


PIPELINE = Toggle(
    name="pipeline",
    summary="Where the batch of a step comes from.",
    values={
        "resident": "it is on the device before the step begins",
        "host": "it is in the host's memory and is copied in the step",
        "loader": "it is drawn from a DataLoader over the workload's dataset, and copied",
    },
    stage=Stage.PROBLEM,
    requires={
        "host": Requirement(device_kinds=("cuda",), why="on a CPU the batches are in the host's memory anyway"),
        "loader": Requirement(check=has_dataset),
    },
    apply=apply,
    evidence=evidence,
    usage=lambda value, _: _USAGE[value],
    source="PyTorch documentation: torch.utils.data",
)
