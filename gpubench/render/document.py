"""The neutral document that every format renders: a title, tables, notes and a recommendation.

Builders put texts in as they are. `formats.render` makes them printable once, before a format sees them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gpubench.text import printable

MISSING = "-"  # not measured; never 0


@dataclass(frozen=True)
class Column:
    """A table's column. `width`: the narrowest terminal, in characters, that shows it."""

    key: str
    heading: str
    is_figure: bool = True  # aligned to the right, never broken over lines
    width: int = 0
    folds: bool = False  # a name that may be broken over lines


@dataclass(frozen=True)
class Note:
    """A sentence. `status` is the verdict that it tells; `summarized`: another note speaks for it."""

    text: str
    status: str = ""
    summarized: bool = False


@dataclass(frozen=True)
class TableRow:
    """Cells by the keys of the columns, and the notes on this row."""

    cells: Mapping[str, str]
    status: str = ""
    is_chosen: bool = False  # the recommended row
    name: str = ""
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Group:
    """Rows under one title. `is_folded`: of little interest, so that a comment may hide them."""

    rows: tuple[TableRow, ...]
    title: str = ""
    is_folded: bool = False


@dataclass(frozen=True)
class Table:
    """Rows in groups; columns that no row has a value for are left out."""

    columns: tuple[Column, ...]
    groups: tuple[Group, ...]
    longest: int | None = None  # rows on a terminal, where people do not read more

    @property
    def rows(self) -> list[TableRow]:
        """The rows of all groups."""
        return [row for group in self.groups for row in group.rows]


@dataclass(frozen=True)
class Notes:
    """A list of sentences."""

    items: tuple[Note, ...]


@dataclass(frozen=True)
class Recommended:
    """What to switch on, by how much that is faster than what, why, and the lines of code for it."""

    headline: str
    detail: str
    reasons: tuple[str, ...]
    code: tuple[str, ...] = ()


@dataclass(frozen=True)
class Document:
    """One report, answer, check or history. `status` is the verdict on it, `about` what it is of, from wide to narrow.

    `tolerated` are the statuses that the reader asked not to be told as errors.
    """

    title: str
    subtitle: tuple[str, ...] = ()
    blocks: tuple[Table | Notes | Recommended, ...] = ()
    status: str = ""
    about: tuple[str, ...] = ()
    tolerated: tuple[str, ...] = ()

    @property
    def rows(self) -> list[TableRow]:
        """The rows of all tables."""
        return [row for block in self.blocks if isinstance(block, Table) for row in block.rows]

    @property
    def notes(self) -> list[Note]:
        """The notes on the document as a whole."""
        return [note for block in self.blocks if isinstance(block, Notes) for note in block.items]


Kind = Literal["report", "answer", "check", "history"]


@dataclass(frozen=True)
class Content:
    """What a command found. Each format takes what it needs, and only that is computed.

    Args:
        kind: Which formats can show it.
        documents: For people, and for what shows verdicts to people.
        data: What JSON holds: anything that msgspec encodes.
        records: Tidy records with the same keys, for tables of data.
    """

    kind: Kind
    documents: Callable[[], Sequence[Document]]
    data: Callable[[], object]
    records: Callable[[], Any] = list


def notes(*texts: str) -> tuple[Notes, ...]:
    """A list of plain sentences as a block; no block where there are none."""
    return (Notes(tuple(map(Note, texts))),) if texts else ()


def table(columns: Sequence[Column], groups: Sequence[Group], longest: int | None = None) -> tuple[Table, ...]:
    """The table without the columns of figures that no row has; no block where there are no rows."""
    groups = [group for group in groups if group.rows]
    rows = [row for group in groups for row in group.rows]
    kept = [
        column for column in columns if not column.is_figure or any(row.cells[column.key] != MISSING for row in rows)
    ]
    return (Table(tuple(kept), tuple(groups), longest),) if rows else ()


def made_printable(value: Any) -> Any:
    """A copy of a document or a part of it in which every text is safe to print."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, tuple):
        return tuple(map(made_printable, value))
    if isinstance(value, Mapping):
        return {key: made_printable(text) for key, text in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {part.name: made_printable(getattr(value, part.name)) for part in dataclasses.fields(value)}
        return dataclasses.replace(value, **parts)
    return value
