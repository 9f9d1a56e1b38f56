"""Where a step's batch comes from: the device itself, the host's memory, or a DataLoader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from gpubench.report.model import Value
from gpubench.toggles.evidence import recorded
from gpubench.toggles.toggle import EvidenceResult, Requirement, Scope, Stage, Toggle
from gpubench.workloads.batch import dataset_of, items_of, tensors

if TYPE_CHECKING:
    from gpubench.toggles.model_context import ModelContext

_DRAWN = "enumerate(DataLoader)"  # what torch's own loader calls each batch in a trace
_COPY = "HtoD"

_USAGE: dict[Value, str] = {
    "resident": "# pipeline: the batches are on the device before the loop",
    "host": "# pipeline: move each batch in its step: x.to(device)",
    "loader": """loader = torch.utils.data.DataLoader(dataset, batch_size=batch_size)
# in each step: the next batch of the loader, moved to the device""",
}


def has_dataset(scope: Scope) -> str | None:
    """The workload has a dataset."""
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
    from torch.utils.data import DataLoader

    make, size = context.workload.dataset, context.batch_size
    if make is None:
        raise RuntimeError(f"workload {context.workload.name} has no dataset")
    dataset, count = dataset_of(make), len(context.batches)

    class InTurn:
        """The indices of each batch, the timed ones over and over."""

        def __iter__(self) -> Iterator[list[int]]:
            number = 0
            while True:
                yield items_of(context.first_batch + number % count, size, len(dataset))
                number += 1

    draws, drawn = iter(DataLoader(dataset, batch_sampler=InTurn())), 0
    resident = context.step.fetch

    def fetch(index: int) -> Any:
        nonlocal drawn
        if index >= count:  # one that is never timed, of a check
            return resident(index)
        while True:
            batch, number = next(draws), drawn % count
            drawn += 1
            if number == index:  # the steps go in turn, so that none is drawn in vain while they are timed
                return batch

    return fetch


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
