"""Contents as JSON."""

from __future__ import annotations

import msgspec

from gpubench.render.document import Content
from gpubench.render.formats import Format
from gpubench.text import encodable


def render(content: Content) -> str:
    """The content's data, indented."""
    data = content.data()
    try:
        text = msgspec.json.encode(data)
    except UnicodeEncodeError:  # a path may hold bytes that are no text
        text = msgspec.json.encode(_encodable(msgspec.to_builtins(data)))
    return msgspec.json.format(text, indent=2).decode() + "\n"


def _encodable(value: object) -> object:
    """A copy in which every text can be encoded as UTF-8."""
    if isinstance(value, dict):
        return {key: _encodable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_encodable(item) for item in value]
    return encodable(value) if isinstance(value, str) else value


FORMAT = Format("json", ("report", "answer", "check", "history"), render, ending=".json", order=1)
