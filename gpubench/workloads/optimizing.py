"""The optimizers of a training step: what a workload asks for, and the code that makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from gpubench.errors import GpubenchError

if TYPE_CHECKING:
    import torch
    from torch import nn

LEARNING_RATE = 1e-4
KINDS = ("AdamW", "Adam", "SGD", "RMSprop", "Adagrad")  # of torch.optim, whose operators tell how they are implemented
FUSED = ("AdamW", "Adam", "SGD", "Adagrad")  # those that have a fused implementation
CAPTURABLE = ("AdamW", "Adam", "RMSprop")  # those that can be made to count their steps on the device
ALONE = "optimizer"  # the name of the one that a workload has that names none


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """One optimizer of the training step. gpubench makes it, in the implementation that is measured.

    parts:    dotted names of the submodules whose parameters it updates; "" is the whole model.
    kind:     a class of torch.optim: AdamW, Adam, SGD, RMSprop or Adagrad.
    settings: its arguments, but for `foreach` and `fused`, which are what is measured.
    clip:     the largest norm of its gradients, all together (torch.nn.utils.clip_grad_norm_); None: as they are.
    schedule: (optimizer) -> learning rate scheduler, which takes a step after each training step.
    """

    parts: tuple[str, ...] = ("",)
    kind: str = "AdamW"
    settings: Mapping[str, Any] = field(default_factory=lambda: {"lr": LEARNING_RATE})
    clip: float | None = None
    schedule: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler] | None = None


class OptimizerFacts(Struct, frozen=True, kw_only=True):
    """An `Optimizer` as plain data."""

    name: str
    kind: str
    parts: list[str]
    settings: dict[str, str]  # argument -> its value as Python


PLAIN = OptimizerFacts(name=ALONE, kind="AdamW", parts=[""], settings={"lr": repr(LEARNING_RATE)})


def facts_of(optimizers: Mapping[str, Optimizer]) -> list[OptimizerFacts]:
    """`optimizers` as plain data; the default one where there is none."""
    return [
        OptimizerFacts(
            name=name,
            kind=each.kind,
            parts=list(each.parts),
            settings={key: repr(value) for key, value in each.settings.items()},
        )
        for name, each in optimizers.items()
    ] or [PLAIN]


def check(optimizers: Mapping[str, Optimizer], workload: str) -> None:
    """Raises GpubenchError for what cannot be made or measured."""
    for name, each in optimizers.items():
        if not isinstance(each, Optimizer) or each.kind not in KINDS:
            kind = each.kind if isinstance(each, Optimizer) else type(each).__name__
            raise GpubenchError(
                f"Optimizer {name!r} of workload {workload!r} is {kind}.",
                f"Give a gpubench Optimizer whose kind is one of {', '.join(KINDS)}.",
            )
        if isinstance(each.parts, str):
            raise GpubenchError(
                f"The parts of optimizer {name!r} of workload {workload!r} are a text.",
                f"Write ({each.parts!r},) for a single one.",
            )
        for key, value in each.settings.items():
            if not _is_plain(value):
                raise GpubenchError(
                    f"Optimizer {name!r} of workload {workload!r} has {key} of type {type(value).__name__}.",
                    "Give numbers, truth values, or tuples of numbers.",
                )
        if not (each.clip is None or (isinstance(each.clip, int | float) and each.clip > 0)):
            raise GpubenchError(
                f"Optimizer {name!r} of workload {workload!r} has clip {each.clip!r}.", "Give a number above 0."
            )
        if taken := {"foreach", "fused"}.intersection(each.settings):
            raise GpubenchError(
                f"Optimizer {name!r} of workload {workload!r} sets {', '.join(sorted(taken))}.",
                "Leave it out: that is what the toggle `optimizer` measures.",
            )


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, int | float | str)


def lines(optimizers: Sequence[OptimizerFacts], flags: Mapping[str, bool]) -> str:
    """Python that makes them of `model`: `optimizer`, or `optimizers` by name where the workload names some."""
    made = {each.name: _call(each, flags) for each in optimizers}
    if list(made) == [ALONE]:
        return f"{ALONE} = {made[ALONE]}"
    entries = "".join(f"    {name!r}: {call},\n" for name, call in made.items())
    return f"optimizers = {{\n{entries}}}"


def make_optimizers(
    optimizers: Mapping[str, Optimizer], flags: Mapping[str, bool], model: nn.Module
) -> dict[str, torch.optim.Optimizer]:
    """They themselves, by name, over the parameters of `model`: what `lines` makes."""
    from gpubench.toggles.printed import run_lines

    names = run_lines(lines(facts_of(optimizers), flags), model=model)
    found: dict[str, torch.optim.Optimizer] = names.get("optimizers") or {ALONE: names[ALONE]}
    return found


def _call(optimizer: OptimizerFacts, flags: Mapping[str, bool]) -> str:
    from gpubench.toggles.printed import expression

    parts = [f"{expression(part)}.parameters()" for part in optimizer.parts]
    given = parts[0] if len(parts) == 1 else f"[{', '.join(f'*{part}' for part in parts)}]"
    chosen = {name: repr(flag) for name, flag in flags.items() if name != "fused" or optimizer.kind in FUSED}
    settings = "".join(f", {name}={value}" for name, value in {**optimizer.settings, **chosen}.items())
    return f"torch.optim.{optimizer.kind}({given}{settings})"
