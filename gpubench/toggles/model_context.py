"""What toggles act on: one model with its inputs, inside the measured process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpubench.toggles.step_parts import StepParts, plain_step

if TYPE_CHECKING:
    import torch
    from torch import nn

    from gpubench.measure.trace import Trace
    from gpubench.workloads.workload import Workload
    from gpubench.workloads.workload_facts import Mode, WorkloadFacts


@dataclass
class ModelContext:
    """Mutable on purpose: the process ends after one configuration, so nothing is ever undone.

    Toggles of the stages up to MODEL are applied while `model` and `batches` are on the CPU, as built. Both are then
    moved to `device`, and toggles of the later stages are applied. The step runs, `trace` is taken from one step, and
    evidence is asked for.
    """

    workload: Workload
    mode: Mode
    device: torch.device
    batch_size: int
    configuration: dict[str, str | int]
    model: nn.Module
    batches: list[Any] = field(default_factory=list)  # tuples of tensors, as `Workload.inputs` made them
    options: dict[str, Any] = field(default_factory=dict)  # own toggles, tile_size, tile_overlap: for the workload
    optimizers: dict[str, torch.optim.Optimizer] = field(default_factory=dict)  # training
    schedulers: list[torch.optim.lr_scheduler.LRScheduler] = field(default_factory=list)
    first_batch: int = 1  # the number of the first of `batches` in the workload's dataset, where it has one
    parts: int = 1  # into which a step cuts its batch, one after the other
    inputs_resident: bool = True  # batches are on the device before the first step; else `transfer` moves each one
    fetched_anew: bool = False  # a step reads its batch from the dataset; `batches` are the same ones
    loading: dict[str, Any] = field(default_factory=dict)  # arguments of the DataLoader, which the first step makes
    clips: dict[str, float] = field(init=False)  # optimizer -> the largest norm of its gradients
    clip_arguments: dict[str, Any] = field(default_factory=dict)  # further ones of torch.nn.utils.clip_grad_norm_
    loss_schedulers: list[torch.optim.lr_scheduler.ReduceLROnPlateau] = field(default_factory=list)
    step: StepParts = field(init=False)
    skipped: Callable[[], bool] | None = None
    """Whether the update since the last call was skipped, by a toggle that first has to find out how to train; None:
    nothing skips. Only once nothing is skipped do the steps begin that are compared with the reference's."""
    place: Callable[[], object] = field(init=False)  # moves the model to the device
    when_warm: list[Callable[[], None]] = field(default_factory=list)  # called once, before the timed steps
    stores: dict[str, Callable[[torch.Tensor], None]] = field(default_factory=dict)
    """Of a parameter that a toggle keeps in another form, by its name: what puts new values into it."""
    kept: list[nn.Module] = field(default_factory=list)  # in fp32, whatever the others compute in
    compiled: bool = False
    load_time_s: float | None = None  # of the weights, from a file; None: nothing was loaded
    load_peak_bytes: int | None = None  # by how much memory grew at its peak meanwhile: the device's, or else resident
    facts: WorkloadFacts | None = None  # what a look at the workload found, where one was taken
    trace: Trace | None = None  # of one step after warm-up; None: profiling failed, see trace_error
    trace_error: str = ""
    notes: dict[str, Any] = field(default_factory=dict)  # a toggle's own memory from apply to evidence

    def __post_init__(self) -> None:
        asked = self.workload.optimizers if self.mode == "training" else {}
        self.clips = {name: each.clip for name, each in asked.items() if each.clip is not None}
        self.step = plain_step(self)
        self.place = lambda: self.model.to(self.device)

    def forward_once(self) -> None:
        """The forward pass of one step on the first batch; of a training step of the workload's own all of it."""
        batch = self.step.transfer(self.step.fetch(0))
        with self.step.grad_mode():
            self.step.forward(batch)

    def change_batches(self, change: Callable[[Any], Any]) -> None:
        """Changes the batches, and in each step the one that it reads anew."""
        self.batches = [change(batch) for batch in self.batches]
        if self.fetched_anew:
            transfer = self.step.transfer
            self.step.transfer = lambda batch: change(transfer(batch))
