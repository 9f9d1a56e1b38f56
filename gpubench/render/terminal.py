"""A report as a table on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpubench.analysis.groups import Answer
from gpubench.analysis.table import lines
from gpubench.render.cells import FIGURES, HEADINGS, cells
from gpubench.render.heading import GROUPS, heading, remarks, verdict
from gpubench.report.model import Recommendation, Report
from gpubench.text import printable

# Every text goes into rich as Text, which knows no markup: a report cannot colour, link or hide anything.
SMALL = ("number", "configuration", "fps", "speedup", "status")
NARROW = ("number", "configuration", "fps", "speedup", "interval", "memory", "status")
MEDIUM = ("number", "configuration", "fps", "latency", "speedup", "interval", "memory", "compile", "status")
WIDE = tuple(HEADINGS)
FOLDING = "configuration"
STYLES = {"ok": "", "ok*": "yellow", "wrong": "red", "not_effective": "yellow"}


def columns(width: int) -> tuple[str, ...]:
    """The columns that are legible on a terminal of that many characters."""
    return SMALL if width < 80 else NARROW if width < 100 else MEDIUM if width < 130 else WIDE


def show(console: Console, report: Report, recommendation: Recommendation | None = None, snippet: str = "") -> None:
    """Prints heading, table, remarks and the recommendation (by default the report's own) with its code snippet."""
    recommendation = recommendation or report.recommendation
    title, where = heading(report)
    console.print(Text(title, style="bold"))
    console.print(Text(where))
    if report.measurements:
        console.print(table(report, console.width, recommendation.id if recommendation else None))
    for remark in remarks(report):
        console.print(_item(remark))
    if recommendation:
        console.print()
        show_recommendation(console, report, recommendation, snippet)


def table(report: Report, width: int, recommended: str | None = None) -> Table:
    """The rows that ran, grouped; the row of id `recommended` is marked."""
    chosen = columns(width)
    result = Table(box=None, pad_edge=False, padding=(0, 1), collapse_padding=True, header_style="bold")
    for key in chosen:
        result.add_column(
            Text(HEADINGS[key]),
            justify="right" if key in FIGURES else "left",
            overflow="fold",
            no_wrap=key in FIGURES,  # a number broken over two lines would be read as another number
            ratio=1 if key == FOLDING else None,
        )
    result.expand = width < 100
    for group, members in lines(report).items():
        if not members:
            continue
        if GROUPS[group]:
            result.add_row("", Text(GROUPS[group], style="italic"))
        for line in members:
            texts = cells(line)
            marked = line.row.measurement.id == recommended
            style = "bold green" if marked else STYLES.get(texts["status"], "red")
            if marked:
                texts["configuration"] += " (recommended)"
            result.add_row(*(Text(texts[key]) for key in chosen), style=style)
    return result


def show_answer(console: Console, answer: Answer, snippet: str = "") -> None:
    """Prints what one subject's reports recommend, or why they recommend nothing; no table."""
    title, where = heading(answer.report)
    console.print(Text(title, style="bold"))
    console.print(Text(where))
    console.print(Text(printable(f"from {answer.source}")))
    if answer.advice.recommendation:
        show_recommendation(console, answer.report, answer.advice.recommendation, snippet)
    else:
        for reason in answer.advice.reasons:
            console.print(_item(printable(reason)))


def show_recommendation(console: Console, report: Report, recommendation: Recommendation, snippet: str = "") -> None:
    """Prints the recommended configuration, its speedup versus what, the reasons, and the code that switches it on."""
    first, second = verdict(report, recommendation)
    console.print(Text(first, style="bold green"))
    console.print(Text(second))
    for reason in recommendation.reasons:
        console.print(_item(printable(reason)))
    if snippet:
        console.print()
        for line in snippet.splitlines():
            # soft_wrap: code that is copied from the terminal must keep its lines.
            console.print(Text("    " + printable(line)), soft_wrap=True)


def _item(text: str) -> Table:
    """A list item whose later lines are indented under its first."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=1)
    grid.add_column(overflow="fold")
    grid.add_row(Text("-"), Text(text))
    return grid
