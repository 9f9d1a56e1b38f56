"""The registry of formats, and what every format is given."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from gpubench.errors import GpubenchError
from gpubench.render import formats
from gpubench.render.document import (
    Column,
    Content,
    Document,
    Note,
    Recommended,
    RowGroup,
    Table,
    TableRow,
    with_texts,
)
from gpubench.render.formats import all_formats, choices, endings, render
from gpubench.text import printable


@pytest.fixture
def _fresh() -> Iterator[None]:
    yield
    all_formats.cache_clear()
    sys.modules.pop("gpubench.render.formats.shout", None)


def content(text: str = "hello") -> Content:
    return Content("history", lambda: [Document(text)], lambda: {"title": text})


def test_the_choices_of_each_command() -> None:
    assert choices("report") == ("table", "json", "csv", "markdown")
    assert choices("answer") == choices("history") == ("table", "json", "markdown")
    assert choices("check") == ("table", "json", "markdown", "junit", "github")
    assert endings("check") == {".json": "json", ".md": "markdown", ".xml": "junit"}


@pytest.mark.usefixtures("_fresh")
def test_a_format_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shout.py").write_text(
        "from gpubench.render.formats import Format\n\n\n"
        "def render(content):\n    return ''.join(each.title.upper() + '\\n' for each in content.documents())\n\n\n"
        "FORMAT = Format('shout', ('history',), render, ending='.txt', order=9)\n"
    )
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path)])
    all_formats.cache_clear()
    assert choices("history")[-1] == "shout"
    assert "shout" not in choices("check")
    assert endings("history")[".txt"] == "shout"
    assert render(content(), "shout") == "HELLO\n"


def test_a_format_that_cannot_show_the_content_is_refused() -> None:
    for name in ("junit", "paper"):
        with pytest.raises(GpubenchError, match=f"Unknown format '{name}'. .*Known: json, markdown, table"):
            render(content(), name)


def test_every_text_of_a_document_is_made_printable() -> None:
    evil, safe = "a\x1b[31m\u202e\n##[x", "a\\x1b[31m\\u202e ## [x"

    def document(text: str) -> Document:
        note = Note(text, text)
        table = Table((Column("row", text),), (RowGroup((TableRow({"row": text}, text, notes=(note,)),), text),))
        chosen = Recommended(text, text, (note,), (text,))
        return Document(text, (text,), table, (note,), chosen, text, (text,), (text,))

    assert with_texts(document(evil), printable) == document(safe)
    assert "\x1b" not in render(content(evil), "table") + render(content(evil), "markdown")


def test_json_holds_paths_that_are_no_text() -> None:
    assert json.loads(render(content("r-\udcff.json"), "json")) == {"title": "r-\\udcff.json"}


def test_json_of_structs_is_their_own() -> None:
    document = Content("check", list, lambda: [msgspec.Raw(b'{"a":[1,2]}')])
    assert json.loads(render(document, "json")) == [{"a": [1, 2]}]
