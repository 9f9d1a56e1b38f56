"""Reports as CSV: one row a measurement, tidy columns, SI units in the columns' names."""

from __future__ import annotations

from gpubench.analysis.table import frame
from gpubench.report.model import Report
from gpubench.text import printable

# A spreadsheet runs a cell that starts with one of these as a formula.
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv(*reports: Report) -> str:
    """The tidy rows of the reports as CSV with a header; a figure that was not measured is an empty cell."""
    import pandas as pd

    data = frame(*reports)
    data.columns = [inert(str(name)) for name in data.columns]
    for place in range(data.shape[1]):  # by place: two hostile names may read alike once they are inert
        data.isetitem(place, pd.Series([inert(value) for value in data.iloc[:, place]], dtype=object))
    return str(data.to_csv(index=False, lineterminator="\n"))


def inert(value: object) -> object:
    """`value`, with an apostrophe before text that a spreadsheet would run, and on one line; numbers stay numbers."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.lstrip().startswith(FORMULA) else text
