"""The one exception that gpubench raises on purpose. Only `cli` catches it."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable

from gpubench.text import printable

EXIT_OK = 0
EXIT_REGRESSION = 1  # also: nothing valid was measured
EXIT_USAGE = 2
EXIT_INCOMPARABLE = 3
EXIT_INCONCLUSIVE = 4
EXIT_FAULT = 70  # a fault in gpubench itself; EX_SOFTWARE of sysexits.h, so that it is no verdict


class GpubenchError(Exception):
    """What failed, with the value at fault and what is allowed, and (`hint`) what to do next.

    Both may quote files and users; they are made printable here, so that whoever raises it need not. What is quoted
    may end with a full stop, of which one is enough.
    """

    def __init__(self, message: str, hint: str = "", *, exit_code: int = EXIT_USAGE) -> None:
        self.message, self.hint = (re.sub(r"(?<=[^\s./])\.\.(?= |$)", ".", printable(text)) for text in (message, hint))
        super().__init__(self.message)
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


def unknown_name(kind: str, name: str, known: Iterable[str], hint: str = "") -> GpubenchError:
    """An error for a name that is not in `known`, suggesting the nearest one."""
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    suggestion = f"Did you mean {nearest[0]!r}? " if nearest else ""
    return GpubenchError(
        f"Unknown {kind} {name!r}.", f"{suggestion}Known: {', '.join(names) or 'none'}. {hint}".strip()
    )


def check_current_folder() -> None:
    """Raises GpubenchError where the current folder has been deleted: torch's libraries cannot be loaded there."""
    try:
        os.getcwd()  # noqa: PTH109 - it alone is asked
    except OSError as error:
        raise GpubenchError(
            "The current folder has been deleted or cannot be entered.", "Change to another with cd, and start again."
        ) from error
