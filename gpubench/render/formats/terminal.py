"""Documents on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpubench.render.document import Content, Document, Note, Recommended, Table
from gpubench.render.formats import Format
from gpubench.text import plural

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

# Every text goes into rich as Text, which knows no markup: a report cannot colour, link or hide anything.
STYLES = {
    "ok*": "yellow",
    "not_effective": "yellow",
    **dict.fromkeys(("wrong", "unproven", "oom", "timeout", "crashed", "failed"), "red"),
    "regressed": "bold red",
    "inconclusive": "yellow",
    "improved": "green",
    "incomparable": "dim",
    "shifted": "yellow",
}
EXPANDED_BELOW = 100  # characters: narrower tables take the whole width, so that names have all the room


def render(content: Content) -> str:
    """As wide as the terminal, and coloured if it is one."""
    from rich.console import Console

    console = Console(highlight=False)
    with console.capture() as capture:
        show(console, content.documents())
    return capture.get()


def show(console: Console, documents: Sequence[Document]) -> None:
    """Prints the documents, whose texts are printable, with an empty line between them."""
    for index, document in enumerate(documents):
        if index:
            console.print()
        _show(console, document)


def _show(console: Console, document: Document) -> None:
    from rich.text import Text

    if document.title:
        console.print(Text(document.title, style=f"bold {STYLES.get(document.status, '')}".strip()))
    for line in document.subtitle:
        console.print(Text(line))
    for block in document.blocks:
        if isinstance(block, Table):
            _show_table(console, block)
        elif isinstance(block, Recommended):
            if block is not document.blocks[0]:
                console.print()
            _show_recommended(console, block)
        else:
            for note in block.items:
                console.print(_item(note))


def _show_table(console: Console, table: Table) -> None:
    from rich.table import Table as RichTable
    from rich.text import Text

    columns = [column for column in table.columns if column.width <= console.width]
    grid = RichTable(box=None, pad_edge=False, padding=(0, 1), collapse_padding=True, header_style="bold")
    for column in columns:
        grid.add_column(
            Text(column.heading),
            justify="right" if column.is_figure else "left",
            overflow="fold",
            no_wrap=column.is_figure or not column.folds,  # a number broken over two lines reads as another number
            ratio=1 if column.folds else None,
            min_width=8 if column.folds else None,
        )
    grid.expand = console.width < EXPANDED_BELOW
    shown = table.rows[: table.longest]
    left = len(shown)
    for group in table.groups:
        if group.title and not group.is_folded:
            grid.add_row("", Text(group.title, style="italic"))
        for row in group.rows[:left]:
            mark = " (recommended)" if row.is_chosen else ""
            texts = (row.cells[column.key] + (mark if column.folds else "") for column in columns)
            grid.add_row(*map(Text, texts), style="bold green" if row.is_chosen else STYLES.get(row.status, ""))
        left = max(left - len(group.rows), 0)
    console.print(grid)
    if hidden := len(table.rows) - len(shown):
        console.print(Text(f"... and {plural(hidden, 'row')} that are no worse: --format json has them all."))
    for note in (note for row in shown for note in row.notes if not note.summarized):
        console.print(_item(note))


def _show_recommended(console: Console, block: Recommended) -> None:
    from rich.text import Text

    console.print(Text(block.headline, style="bold green"))
    console.print(Text(block.detail))
    for reason in block.reasons:
        console.print(_item(Note(reason)))
    if block.code:
        console.print()
    for line in block.code:
        # soft_wrap: code that is copied from the terminal must keep its lines.
        console.print(Text(f"    {line}"), soft_wrap=True)


def _item(note: Note) -> RichTable:
    """A list item whose later lines are indented under its first."""
    from rich.table import Table as RichTable
    from rich.text import Text

    grid = RichTable.grid(padding=(0, 1))
    grid.add_column(width=1)
    grid.add_column(overflow="fold")
    grid.add_row(Text("-"), Text(note.text), style=STYLES.get(note.status, ""))
    return grid


FORMAT = Format("table", ("report", "answer", "check", "history"), render)
