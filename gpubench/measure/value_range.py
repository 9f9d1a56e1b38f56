"""How large the numbers are that layers give in less than fp32: fp16 ends at 65504, and what is beyond is infinite.

The layers are watched in a step of its own, after all that is measured, and run eagerly: hooks do not run in compiled
code, and would change what is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gpubench.report.model import ValueRange

if TYPE_CHECKING:
    import torch
    from torch import nn

NEAR = 0.5  # of a dtype's largest finite number: one more doubling and it is infinite
IN_FP32 = "it is not taken of a row whose outputs are held to fp32's error"
NOTHING_LOWER = "no layer gave an output in fp16 or bf16"


def watch(model: nn.Module, step: Callable[[], object]) -> ValueRange | None:
    """The range of what layers (modules without parts) give in fp16 or bf16 in one `step`; None where none does.

    Sums and products that no layer makes, such as the scores within attention, are not among it.
    """
    import torch
    from torch.nn.modules.module import register_module_forward_hook
    from torch.utils._pytree import tree_leaves

    names = {id(module): name for name, module in model.named_modules()}
    seen = _Seen()

    def look(module: nn.Module, _: Any, output: Any) -> None:
        if any(True for _ in module.children()):
            return
        for value in tree_leaves(output):
            if isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16) and value.numel():
                seen.add(value.detach(), names.get(id(module)) or type(module).__name__)

    hook = register_module_forward_hook(look)
    try:
        with torch.compiler.set_stance("force_eager"):
            step()
    finally:
        hook.remove()
    return seen.range()


class _Seen:
    """What has been seen so far."""

    def __init__(self) -> None:
        self.dtypes: list[str] = []
        self.largest, self.largest_in = 0.0, ""
        self.count = self.near = self.subnormal = 0

    def add(self, tensor: torch.Tensor, name: str) -> None:
        import torch

        limits, sizes = torch.finfo(tensor.dtype), tensor.abs()
        self.dtypes.append(str(tensor.dtype).removeprefix("torch."))
        self.count += sizes.numel()
        self.near += int((~(sizes <= NEAR * limits.max)).sum())  # NaN too
        self.subnormal += int(((sizes > 0) & (sizes < limits.tiny)).sum())
        largest = float(sizes.where(sizes.isfinite(), 0.0).max())
        if largest >= self.largest:
            self.largest, self.largest_in = largest, name

    def range(self) -> ValueRange | None:
        if not self.count:
            return None
        return ValueRange(
            dtypes=sorted(set(self.dtypes)),
            largest_activation=self.largest,
            largest_in=self.largest_in,
            near_overflow=self.near / self.count,
            subnormal=self.subnormal / self.count,
        )
