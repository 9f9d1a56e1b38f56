"""Makes a model plain fp32, whatever its build made of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gpubench.toggles.printed import cast_model, run_lines
from gpubench.workloads.batch import map_tensors, tensors
from gpubench.workloads.building import has_complex

if TYPE_CHECKING:
    from types import FrameType

    import torch

    from gpubench.toggles.model_context import ModelContext

_KINDS = ("cpu", "cuda")


def make_plain(context: ModelContext) -> None:
    """Undoes what the workload's own code chose: dtypes of weights and inputs, autocast, the default dtype."""
    import torch

    torch.set_default_dtype(torch.float32)
    for kind in _KINDS:
        torch.set_autocast_enabled(kind, False)
    _pass_own_autocast()
    given = (tensor for batch in context.batches for tensor in tensors(batch))
    everything = (*context.model.parameters(), *context.model.buffers(), *given)
    if any(tensor.is_floating_point() and tensor.dtype != torch.float32 for tensor in everything):
        convert(context, torch.float32)


def convert(context: ModelContext, dtype: torch.dtype) -> None:
    """Converts the weights and the floating-point inputs."""
    run_lines(cast_model(str(dtype), has_complex(context.model)), model=context.model)

    def converted(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    context.change_batches(lambda batch: map_tensors(converted, batch))


def autocast(kind: str, dtype: torch.dtype) -> torch.autocast:
    """An autocast region of gpubench's, which takes effect after `make_plain`."""
    import torch

    region = torch.autocast(kind, dtype)
    region.is_ours = True  # type: ignore[attr-defined]
    return region


def _restores(frame: FrameType | None) -> bool:
    """Whether torch itself enters the region from `frame`, to have in a backward pass what held in the forward pass.

    Other regions that torch enters are the workload's own: of functions with a decorator, of what dynamo traced.
    """
    while frame is not None and frame.f_code.co_name == "__enter__":  # of a subclass
        frame = frame.f_back
    if frame is None:
        return False
    place = frame.f_globals.get("__name__"), frame.f_code.co_name
    return place[0] == "torch.utils.checkpoint" or place == ("torch.amp.autocast_mode", "decorate_bwd")


def _pass_own_autocast() -> None:
    """From now on an autocast region of the workload's own changes nothing: what surrounds it holds within it too."""
    import torch

    entered: Callable[[Any], Any] = torch.autocast.__enter__
    if hasattr(entered, "is_ours"):  # another model in this process has done it
        return

    def enter(region: Any) -> Any:
        # A region that is a decorator is entered again and again: what it asked for at first is what it asks for.
        asked = region.__dict__.setdefault("asked", region._enabled)
        if asked and not (hasattr(region, "is_ours") or _restores(sys._getframe(1))):
            region._enabled = torch.is_autocast_enabled(region.device)
            region.fast_dtype = torch.get_autocast_dtype(region.device)
        return entered(region)

    enter.is_ours = True  # type: ignore[attr-defined]
    torch.autocast.__enter__ = enter  # type: ignore[method-assign]
