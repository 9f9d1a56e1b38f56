"""What is measured: bundled workloads, those of other distributions, a user's own. Listing them needs no torch."""

from gpubench.workloads.catalog import SIZES, auto_size, names, origin, resolve_size, summary
from gpubench.workloads.loader import Loaded, load
from gpubench.workloads.source import check_reference, find, import_module_of

__all__ = [
    "SIZES",
    "Loaded",
    "auto_size",
    "check_reference",
    "find",
    "import_module_of",
    "load",
    "names",
    "origin",
    "resolve_size",
    "summary",
]
