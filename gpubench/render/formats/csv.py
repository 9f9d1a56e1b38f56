"""Records as CSV: one row a measurement, SI units in the columns' names."""

from __future__ import annotations

from gpubench.render.document import Content
from gpubench.render.formats import Format
from gpubench.text import printable

# A spreadsheet runs a cell that starts with one of these as a formula.
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def render(content: Content) -> str:
    """The records with a header; a figure that was not measured is an empty cell."""
    import pandas as pd

    data = content.records() if content.records else pd.DataFrame()
    data.columns = [inert(str(name)) for name in data.columns]
    for place in range(data.shape[1]):  # by place: two hostile names may read alike once they are inert
        data.isetitem(place, pd.Series([inert(value) for value in data.iloc[:, place]], dtype=object))
    return str(data.to_csv(index=False, lineterminator="\n"))


def inert(value: object) -> object:
    """`value` on one line, with an apostrophe before text that a spreadsheet would run; numbers stay numbers."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.lstrip().startswith(FORMULA) else text


FORMAT = Format("csv", ("report",), render, order=2)
