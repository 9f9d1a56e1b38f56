"""A scheduler that halves the learning rate where the loss stops falling, for which each step reads its loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpubench.report.model import Value
from gpubench.text import plural
from gpubench.toggles.printed import run_lines
from gpubench.toggles.toggle import EvidenceResult, Scope, Stage, Toggle
from gpubench.toggles.training.optimizer import is_training
from gpubench.workloads.optimizing import ALONE, facts_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gpubench.toggles.model_context import ModelContext
    from gpubench.workloads.optimizing import OptimizerFacts

# What the guide asks for that trains a recurrent language model on a CPU: docs/claims.md, mmrec-cpu.
_ARGUMENTS = "factor=0.5, patience=10, min_lr=1e-6"


def _lines(optimizers: Iterable[OptimizerFacts]) -> str:
    alone = [each.name for each in optimizers] == [ALONE]
    each = ALONE if alone else "each"
    made = f"torch.optim.lr_scheduler.ReduceLROnPlateau({each}, {_ARGUMENTS})"
    return f"plateaus = [{made}]" if alone else f"plateaus = [\n    {made}\n    for each in optimizers.values()\n]"


def apply(context: ModelContext, value: Value) -> None:
    """Makes a scheduler for each optimizer, beside its own, and feeds it with the loss at the end of each step."""
    if value == "off":
        return
    lines, made = _lines(facts_of(context.workload.optimizers)), context.optimizers
    names = run_lines(lines, optimizers=made, optimizer=made.get(ALONE))
    context.loss_schedulers, collect = names["plateaus"], context.step.collect

    def fed(loss: Any) -> Any:
        for scheduler in context.loss_schedulers:
            scheduler.step(loss.detach())
        return collect(loss)

    context.step.collect = fed


def evidence(context: ModelContext, value: Value) -> EvidenceResult:
    """Whether each optimizer has such a scheduler that was told losses, which are finite numbers then."""
    fed = [each for each in context.loss_schedulers if each.last_epoch > 0]
    words = f"{len(fed)} of {plural(len(context.optimizers), 'optimizer')} with a scheduler that is told the loss"
    if fed:
        words += f"; the best of {plural(fed[0].last_epoch, 'loss', 'losses')} is {fed[0].best:g}"
    if value == "off":
        return EvidenceResult(not fed, words)
    watched = {id(each.optimizer) for each in fed}
    return EvidenceResult(bool(fed) and watched == set(map(id, context.optimizers.values())), words)


def _usage(value: Value, scope: Scope | None) -> str:
    if value == "off":
        return "# plateau: no scheduler watches the loss"
    lines = _lines(scope.workload.optimizers if scope else facts_of({}))
    return f"{lines}\n# at the end of each training step: for each in plateaus: each.step(loss.detach())"


PLATEAU = Toggle(
    name="plateau",
    summary="A scheduler that halves the learning rate after 10 steps in which the loss did not fall.",
    values={
        "off": "no scheduler but the workload's own",
        "on": "ReduceLROnPlateau for each optimizer, which is told the loss of each step",
    },
    stage=Stage.OPTIMIZER,
    applies=is_training,
    after=("optimizer",),
    apply=apply,
    evidence=evidence,
    usage=_usage,
    claims=("mmrec-cpu",),
    source="PyTorch documentation: torch.optim.lr_scheduler.ReduceLROnPlateau",
)
