"""Records as CSV: one row a measurement, SI units in the columns' names."""

from __future__ import annotations

import csv
import io

from gpubench.render.document import Content
from gpubench.render.formats import Format
from gpubench.text import printable

# A spreadsheet runs a cell that starts with one of these as a formula.
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def render(content: Content) -> str:
    """The records with a header; a figure that was not measured is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(_inert, line) for line in content.records())
    return text.getvalue()


def _inert(value: object) -> object:
    """`value` on one line, with an apostrophe before text that a spreadsheet would run; numbers stay numbers."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.lstrip().startswith(FORMULA) else text


FORMAT = Format("csv", ("report",), render, order=2)
