"""What toggles act on: one model with its inputs, inside the measured process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    from gpubench.measure.trace import Trace
    from gpubench.workloads.workload import Workload
    from gpubench.workloads.workload_facts import Mode


@dataclass
class ModelContext:
    """Mutable on purpose: the process ends after one configuration, so nothing is ever undone.

    Order of life: toggles of the stages up to MODEL are applied while `model` and `batches` are on the CPU
    in fp32; both are then moved to `device`; DTYPE and later stages follow there. The step runs, `trace` is
    taken from one step, and evidence is asked for.
    """

    workload: Workload
    mode: Mode
    device: torch.device
    batch_size: int
    configuration: dict[str, str | int]
    model: nn.Module
    batches: list[Any] = field(default_factory=list)  # tuples of tensors, as `Workload.inputs` made them
    options: dict[str, int] = field(default_factory=dict)  # tile_size, tile_overlap: handed to Workload.infer
    autocast_dtype: torch.dtype | None = None  # None: no autocast
    scaler: torch.amp.GradScaler | None = None  # fp16 training
    learning_rate: float = 1e-4
    optimizer: torch.optim.Optimizer | None = None  # training
    contexts: list[Callable[[], AbstractContextManager[Any]]] = field(default_factory=list)  # entered around every step
    compiled: bool = False
    trace: Trace | None = None  # of one step after warm-up; None: profiling failed, see trace_error
    trace_error: str = ""
    notes: dict[str, Any] = field(default_factory=dict)  # a toggle's own memory from apply to evidence
