"""Building a workload's model in this process: the mode its parts run in, and what the build may set only once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from unittest import mock

from gpubench.workloads.workload import Options, Workload
from gpubench.workloads.workload_facts import Mode

if TYPE_CHECKING:
    from torch import nn

NOTHING: Options = MappingProxyType({})
SHOWN = 3  # names in a sentence; the rest are counted


def plain_name(name: str) -> str:
    """A dotted name without the modules that torch.compile returned around others."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def starred(name: str) -> str:
    """A dotted name with each index of a list as `*`: `blocks.*.norm`."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def own_options(workload: Workload, configuration: Mapping[str, Any] = NOTHING) -> dict[str, Any]:
    """The value of each of the workload's own toggles: that of `configuration`, or the first one."""
    firsts = {toggle.name: next(iter(toggle.values)) for toggle in workload.toggles}
    return {name: configuration.get(name, first) for name, first in firsts.items()}


def with_options(function: Callable[..., Any], options: Options) -> Callable[..., Any]:
    """`function`, which gets `options` where it has a parameter of that name."""
    try:
        wanted = "options" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # some classes of extensions tell no signature
        wanted = False
    return functools.partial(function, options=options) if wanted else function


def build_model(workload: Workload, options: Options = NOTHING) -> nn.Module:
    """A new model, as the workload builds it with `options`.

    A process may build several, and torch refuses to set the number of inter-operator threads twice, even to the same.
    """
    import torch

    set_threads = torch.set_num_interop_threads

    def set_once(count: int) -> None:
        if count != torch.get_num_interop_threads():
            set_threads(count)

    with mock.patch.object(torch, "set_num_interop_threads", set_once):
        model: nn.Module = with_options(workload.build, options or own_options(workload))()
    return model


def has_complex(model: nn.Module) -> bool:
    """Whether a parameter or buffer of the model is complex: rotary frequencies, spectral filters."""
    return any(tensor.is_complex() for tensor in (*model.parameters(), *model.buffers()))


def set_mode(model: nn.Module, mode: Mode) -> str:
    """Puts the model into training or evaluation mode, and says which parts keep another one.

    A new module is in training mode. Where the build has put some parts into evaluation mode, that was meant: training
    leaves those as they are. A model in evaluation mode of which some parts train (dropout that samples) is meant for
    inference as it is, but a model in training mode is not.
    """
    modules = {name: part for name, part in model.named_modules() if type(part).__name__ != "OptimizedModule"}
    whole = next(iter(modules.values()), model)
    mixed = len({part.training for part in modules.values()}) > 1
    if not mixed or (mode == "inference" and whole.training):
        model.train(mode == "training")
        return ""
    unlike = [name or "the model itself" for name, part in modules.items() if part.training == (mode == "inference")]
    unlike = [name for name in unlike if not any(name.startswith(f"{other}.") for other in unlike)]
    more = f" and {len(unlike) - SHOWN} more" if len(unlike) > SHOWN else ""
    other = "evaluation" if mode == "training" else "training"
    return (
        f"The build of the workload leaves parts of the model in {other} mode ({', '.join(unlike[:SHOWN])}{more}), and "
        "so they are measured."
    )
