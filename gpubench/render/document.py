"""The neutral document that every format renders: tables, notes and a recommendation.

Builders put texts in as they are; `formats.render` makes them printable before a format sees them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gpubench.metrics import MISSING

Kind = Literal["report", "answer", "check", "history", "claims"]


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
    """A sentence. `status` is the verdict that it explains; `summarized`: another note speaks for it."""

    text: str
    status: str = ""
    summarized: bool = False


@dataclass(frozen=True)
class TableRow:
    """Cells by the keys of the columns, and the notes on this row."""

    cells: Mapping[str, str]
    status: str = ""
    is_chosen: bool = False  # the recommended row
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class RowGroup:
    """Rows under one title. `is_folded`: of little interest, so that a comment may hide them."""

    rows: tuple[TableRow, ...]
    title: str = ""
    is_folded: bool = False


@dataclass(frozen=True)
class Table:
    """Groups of rows. `longest`: how many of them a terminal shows."""

    columns: tuple[Column, ...]
    groups: tuple[RowGroup, ...]
    longest: int | None = None

    @property
    def rows(self) -> list[TableRow]:
        """The rows of all groups."""
        return [row for group in self.groups for row in group.rows]


@dataclass(frozen=True)
class Recommended:
    """What to switch on, by how much that is faster than what, why, and the lines of code for it."""

    headline: str
    detail: str
    reasons: tuple[Note, ...]
    code: tuple[str, ...] = ()


@dataclass(frozen=True)
class Document:
    """One report, answer, check or history, of which nothing but `title` must be there."""

    title: str
    subtitle: tuple[str, ...] = ()
    table: Table | None = None
    notes: tuple[Note, ...] = ()
    recommended: Recommended | None = None
    status: str = ""  # the verdict on the whole
    about: tuple[str, ...] = ()  # what it is of: workload, mode, device
    tolerated: tuple[str, ...] = ()  # statuses that are no errors to this reader

    @property
    def rows(self) -> list[TableRow]:
        """The rows of the table."""
        return self.table.rows if self.table else []

    @property
    def remarks(self) -> list[str]:
        """The notes that explain no verdict."""
        return [note.text for note in self.notes if not note.status]


@dataclass(frozen=True)
class Content:
    """What a command has to show. A format calls what it needs, so that nothing else is computed."""

    kind: Kind
    documents: Callable[[], Sequence[Document]]
    data: Callable[[], object]  # for JSON: anything that msgspec encodes
    records: Callable[[], Any] | None = None  # a pandas.DataFrame


def table(columns: Sequence[Column], groups: Sequence[RowGroup], longest: int | None = None) -> Table | None:
    """The table without the figures that no row has; None without any row."""
    full = Table(tuple(columns), tuple(group for group in groups if group.rows), longest)
    kept = (each for each in columns if not each.is_figure or any(row.cells[each.key] != MISSING for row in full.rows))
    return dataclasses.replace(full, columns=tuple(kept)) if full.rows else None


def with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of a document, of a part of one or of plain data in which `change` has been applied to every text."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, tuple | list):
        return type(value)(with_texts(item, change) for item in value)
    if isinstance(value, Mapping):
        return {key: with_texts(item, change) for key, item in value.items()}
    if value is None or not dataclasses.is_dataclass(value):
        return value
    parts = {part.name: with_texts(getattr(value, part.name), change) for part in dataclasses.fields(value)}
    return dataclasses.replace(value, **parts)  # type: ignore[type-var]
