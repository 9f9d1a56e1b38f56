"""Contents as the terminal shows them."""

from __future__ import annotations

import os
from unittest import mock

from gpubench.render.document import Content
from gpubench.render.formats import render


def on_screen(content: Content, width: int = 120, colour: bool = False) -> str:
    """The content as a terminal of that width shows it, with colours or without."""
    looks = {"FORCE_COLOR": "1", "COLORTERM": "truecolor", "TERM": "xterm-256color"} if colour else {"TERM": "dumb"}
    with mock.patch.dict(os.environ, {"COLUMNS": str(width), **looks}):
        for name in () if colour else ("FORCE_COLOR", "COLORTERM"):
            os.environ.pop(name, None)
        return render(content, "table")
