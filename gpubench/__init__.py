"""gpubench: which settings make a PyTorch model fast on a device, with evidence.

Code outside the package builds on `Toggle` (with its `Stage` and `EvidenceResult`) and `Workload`; the functions are
those of `gpubench.api`. All are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "EvidenceResult",
    "GpubenchError",
    "Optimizer",
    "Stage",
    "Toggle",
    "Workload",
    "__version__",
    "ab",
    "check",
    "compare",
    "load_report",
    "recommend",
    "sweep",
]

if TYPE_CHECKING:
    from gpubench.api import ab, check, compare, load_report, recommend, sweep
    from gpubench.errors import GpubenchError
    from gpubench.toggles.toggle import EvidenceResult, Stage, Toggle
    from gpubench.workloads.optimizing import Optimizer
    from gpubench.workloads.workload import Workload

HOMES = {
    "EvidenceResult": "gpubench.toggles.toggle",
    "GpubenchError": "gpubench.errors",
    "Optimizer": "gpubench.workloads.optimizing",
    "Stage": "gpubench.toggles.toggle",
    "Toggle": "gpubench.toggles.toggle",
    "Workload": "gpubench.workloads.workload",
}


def __getattr__(name: str) -> Any:
    if name == "api":
        return import_module("gpubench.api")
    if name not in __all__:
        raise AttributeError(f"module 'gpubench' has no attribute {name!r}")
    return getattr(import_module(HOMES.get(name, "gpubench.api")), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
