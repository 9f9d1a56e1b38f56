"""gpubench: which settings make a PyTorch model fast on a device, with evidence.

`Toggle` and `Workload` are the two types that code outside the package builds on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Toggle", "Workload", "__version__"]

if TYPE_CHECKING:
    from gpubench.toggles.toggle import Toggle
    from gpubench.workloads.workload import Workload


def __getattr__(name: str) -> Any:
    if name == "Toggle":
        from gpubench.toggles.toggle import Toggle

        return Toggle
    if name == "Workload":
        from gpubench.workloads.workload import Workload

        return Workload
    raise AttributeError(f"module 'gpubench' has no attribute {name!r}")
