"""Contents as JSON."""

from __future__ import annotations

import msgspec

from gpubench.render.document import Content, with_texts
from gpubench.render.formats import Format
from gpubench.text import encodable


def render(content: Content) -> str:
    """The content's data, indented."""
    data = content.data()
    try:
        text = msgspec.json.encode(data)
    except UnicodeEncodeError:  # a path may hold bytes that are no text
        text = msgspec.json.encode(with_texts(msgspec.to_builtins(data), encodable))
    return msgspec.json.format(text, indent=2).decode() + "\n"


FORMAT = Format("json", ("report", "answer", "check", "history", "claims"), render, ending=".json", order=1)
