"""What is measured: the bundled workloads, and a user's own. Listing and naming them needs no torch."""

from gpubench.workloads.catalog import SIZES, auto_size, names, resolve_size, summary
from gpubench.workloads.loader import Loaded, load
from gpubench.workloads.source import check_reference, import_module_of

__all__ = [
    "SIZES",
    "Loaded",
    "auto_size",
    "check_reference",
    "import_module_of",
    "load",
    "names",
    "resolve_size",
    "summary",
]
