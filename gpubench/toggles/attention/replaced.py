"""Another function in the place of torch.nn.functional.scaled_dot_product_attention, wherever code has it by name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpubench.toggles.toggle import Scope

NAME = "torch.nn.functional.scaled_dot_product_attention"
WHERE = "# before modules are imported that take scaled_dot_product_attention by its name"


def has_attention(scope: Scope) -> str | None:
    """Applies where the model has attention."""
    return None if scope.workload.attention else f"workload {scope.workload.name} has no attention"


def replace(old: Callable[..., Any], new: Callable[..., Any]) -> None:
    """Puts `new` wherever a loaded module has `old`: modules that imported it by name have it in a variable.

    Of torch itself only torch.nn.functional: others know it as the operator that they translate.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith("torch.") and name != "torch.nn.functional":
            continue
        variables = getattr(module, "__dict__", {})
        for variable, value in list(variables.items()):
            if value is old:
                variables[variable] = new


@contextmanager
def counted(function: Callable[..., Any]) -> Iterator[list[int]]:
    """Inside the block each call of `function`, which is in torch's place, adds an entry to the list."""
    calls: list[int] = []

    def counting(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        return function(*arguments, **named)

    replace(function, counting)
    try:
        yield calls
    finally:
        replace(counting, function)
