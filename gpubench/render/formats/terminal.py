"""Documents on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpubench.render.document import Content, Document, Note, Recommended, Table
from gpubench.render.formats import Format
from gpubench.text import plural

if TYPE_CHECKING:
    from rich.console import Console

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
    """As wide as the terminal, and coloured if it is one; an empty line between documents."""
    from rich.console import Console

    console = Console(highlight=False)
    with console.capture() as capture:
        for index, document in enumerate(content.documents()):
            if index:
                console.print()
            _show(console, document)
    return capture.get()


def _show(console: Console, document: Document) -> None:
    from rich.text import Text

    if document.title:
        console.print(Text(document.title, style=f"bold {STYLES.get(document.status, '')}".strip()))
    for line in document.subtitle:
        console.print(Text(line))
    if document.table:
        _show_table(console, document.table)
    _show_notes(console, document.notes)
    if document.recommended:
        if document.table or document.notes:
            console.print()
        _show_recommended(console, document.recommended)


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
            no_wrap=not column.folds,  # a number broken over two lines reads as another number
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
        console.print(Text(f"... and {plural(hidden, 'more row')}, none worse; --format json shows all."))
    _show_notes(console, [note for row in shown for note in row.notes if not note.summarized])


def _show_notes(console: Console, notes: Sequence[Note]) -> None:
    """List items whose later lines are indented under their first."""
    from rich.table import Table as RichTable
    from rich.text import Text

    for note in notes:
        grid = RichTable.grid(padding=(0, 1))
        grid.add_column(width=1)
        grid.add_column(overflow="fold")
        grid.add_row(Text("-"), Text(note.text), style=STYLES.get(note.status, ""))
        console.print(grid)


def _show_recommended(console: Console, block: Recommended) -> None:
    from rich.text import Text

    console.print(Text(block.headline, style="bold green"))
    console.print(Text(block.detail))
    _show_notes(console, block.reasons)
    for line in ("", *block.code) if block.code else ():
        # soft_wrap: code that is copied from the terminal must keep its lines.
        console.print(Text(f"    {line}".rstrip()), soft_wrap=True)


FORMAT = Format("table", ("report", "answer", "check", "history", "claims"), render)
