"""A check as a table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpubench.regression.verdicts import Check, RowCheck
from gpubench.render.check_cells import (
    FIGURES,
    HEADINGS,
    cells,
    headline,
    remarks,
    sentence,
    sources,
    told,
    undecided,
    worst_first,
)
from gpubench.text import plural

STYLES = {"regressed": "bold red", "inconclusive": "yellow", "improved": "green", "incomparable": "dim"}
MOST = 100  # rows; of 1,000 nobody reads the last, and laying them out takes longer than deciding
NARROWEST = ("verdict", "row", "change")
NARROW = ("verdict", "row", "now", "change", "detectable")
MEDIUM = ("verdict", "row", "before", "now", "change", "detectable", "memory")


def show(console: Console, check: Check) -> None:
    """Prints headline, rows worst first, and a sentence for each finding that is not `unchanged`."""
    console.print(Text(headline(check), style="bold " + STYLES.get(check.verdict, "green").removeprefix("bold ")))
    console.print(Text(sources(check)))
    rows = worst_first(check)[:MOST]
    if rows:
        console.print(_table(rows, console.width))
    if (hidden := len(check.rows) - len(rows)) > 0:
        console.print(Text(f"... and {plural(hidden, 'row')} that are no worse: --format json has them all."))
    for row in rows:
        for one in told(row):
            console.print(Text(f"- {sentence(row, one)}", style=STYLES.get(one.verdict, "")))
    for text in (*undecided(check), *remarks(check)):
        console.print(Text(f"- {text}"))


def _table(rows: Sequence[RowCheck], width: int) -> Table:
    chosen = NARROWEST if width < 50 else NARROW if width < 90 else MEDIUM if width < 120 else tuple(HEADINGS)
    table = Table(box=None, pad_edge=False, padding=(0, 1), collapse_padding=True, header_style="bold")
    for key in chosen:
        table.add_column(
            Text(HEADINGS[key]),
            justify="right" if key in FIGURES else "left",
            overflow="fold",
            no_wrap=key != "row",
            min_width=8 if key == "row" else None,
            ratio=1 if key == "row" else None,
        )
    table.expand = width < 120
    for row in rows:
        texts = cells(row)
        table.add_row(*(Text(texts[key]) for key in chosen), style=STYLES.get(row.verdict, ""))
    return table
