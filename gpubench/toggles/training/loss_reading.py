"""Whether the step hands the loss to Python, as a progress bar or a log does, which on a GPU has to wait for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpubench.report.model import Value
from gpubench.text import plural
from gpubench.toggles.evidence import is_blind, recorded
from gpubench.toggles.toggle import EvidenceResult, Scope, Stage, Toggle
from gpubench.toggles.training.optimizer import is_training

if TYPE_CHECKING:
    from gpubench.toggles.model_context import ModelContext

_READ = "loss_reading.read"  # note: a `Read`
_EVERY = {"every-step": 1, "every-10": 10}
_OPERATOR = "aten::item"


@dataclass
class Read:
    """What was read of the loss since the toggle was applied."""

    steps: int = 0
    losses: int = 0  # that were read
    last: float = math.nan


def apply(context: ModelContext, value: Value) -> None:
    """Reads the loss at the end of each step, or of every tenth one."""
    if value == "never":
        return
    collect, every = context.step.collect, _EVERY[str(value)]
    read = context.notes[_READ] = Read()

    def reading(loss: Any) -> Any:
        if read.steps % every == 0:
            read.last = loss.item()
            read.losses += 1
        read.steps += 1
        return collect(loss)

    context.step.collect = reading


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether the steps have read as many losses and, if each has to, whether the profiled one shows it."""
    read = context.notes.get(_READ)
    if read is None:
        return EvidenceResult(value == "never", "the step does not read its loss")
    words = f"{plural(read.losses, 'loss', 'losses')} read in {plural(read.steps, 'step')}, the last is {read.last:g}"
    every = _EVERY.get(str(value))
    if every is None or not read.losses or read.losses != -(-read.steps // every):
        return EvidenceResult(False, words)
    if every > 1:  # the profiled step is mostly one that does not
        return EvidenceResult(True, words)
    trace = recorded(context)
    if isinstance(trace, EvidenceResult):
        return trace
    shown = any(operator.name == _OPERATOR and operator.depth == 0 for operator in trace.operators)
    words += f"; {_OPERATOR} {'ran' if shown else 'did not run'} in the step"
    if context.device.type != "cuda":
        return EvidenceResult(shown, words)
    if is_blind(context, trace):
        return EvidenceResult(None, f"{words}; the profiler recorded no call of CUDA")
    copies = sum("DtoH" in copy or "DeviceToHost" in copy for copy in trace.copies)
    waits = sum("Synchronize" in call for call in trace.cuda_calls)
    words += f", with {plural(copies, 'copy', 'copies')} to the host and {plural(waits, 'call')} that wait"
    return EvidenceResult(shown and copies > 0 and waits > 0, words)


def _usage(value: Value, _: Scope | None) -> str:
    when = {
        "never": "never read inside the loop",
        "every-step": "loss.item() at the end of each training step",
        "every-10": "loss.item() at the end of a training step where number % 10 == 0",
    }
    return f"# loss_reading: {when[str(value)]}"


LOSS_READING = Toggle(
    name="loss_reading",
    summary="How often a training step reads its loss, for which the host waits.",
    values={
        "never": "it stays on the device",
        "every-step": "as a progress bar or a scheduler that watches the loss does",
        "every-10": "in every tenth step, as a log may do",
    },
    stage=Stage.OPTIMIZER,
    applies=is_training,
    apply=apply,
    evidence=evidence,
    usage=_usage,
    claims=("mmrec-cpu",),
    source="PyTorch Performance Tuning Guide: Avoid unnecessary CPU-GPU synchronization",
)
