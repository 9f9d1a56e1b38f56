"""The registry of formats: each module here is one, with a `FORMAT`."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from gpubench.errors import unknown_name
from gpubench.render.document import Content, Kind, with_texts
from gpubench.text import printable


@dataclass(frozen=True)
class Format:
    """How `render` shows contents of some kinds, as text with a final newline. Documents it asks for are printable."""

    name: str  # for --format
    kinds: tuple[Kind, ...]
    render: Callable[[Content], str]
    ending: str = ""  # of files that hold it; empty: it is for standard output only
    order: int = 0  # in the list of choices


@functools.cache
def all_formats() -> dict[str, Format]:
    """Every format by name."""
    modules = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
    formats: list[Format] = [module.FORMAT for module in modules]
    return {each.name: each for each in sorted(formats, key=lambda each: (each.order, each.name))}


def choices(kind: Kind) -> tuple[str, ...]:
    """The names of the formats that can show contents of that kind."""
    return tuple(each.name for each in all_formats().values() if kind in each.kinds)


def endings(kind: Kind) -> dict[str, str]:
    """The formats of files that can hold contents of that kind, by the ending of the file."""
    return {each.ending: each.name for each in all_formats().values() if each.ending and kind in each.kinds}


def render(content: Content, name: str) -> str:
    """The content in the format called `name`, with a final newline. A table is as wide as the terminal.

    Raises GpubenchError for a format that cannot show this kind of content.
    """
    if name not in choices(content.kind):
        raise unknown_name("format", name, choices(content.kind))
    safe = dataclasses.replace(content, documents=lambda: with_texts(tuple(content.documents()), printable))
    return all_formats()[name].render(safe)


if TYPE_CHECKING:
    ReportFormat: TypeAlias = str
    AnswerFormat: TypeAlias = str
    CheckFormat: TypeAlias = str
    HistoryFormat: TypeAlias = str
    ClaimsFormat: TypeAlias = str
else:  # the choices of each command's --format
    ReportFormat, AnswerFormat, CheckFormat, HistoryFormat, ClaimsFormat = (
        Literal[choices(kind)] for kind in get_args(Kind)
    )
