"""`gpubench schema`: the JSON Schema of reports."""

from __future__ import annotations

import json

from gpubench.cli.reports import emit
from gpubench.report.store import json_schema


def schema() -> None:
    """Print the JSON Schema that every report follows."""
    emit(json.dumps(json_schema(), indent=2))
