from __future__ import annotations

import pytest

from gpubench.errors import GpubenchError
from gpubench.text import plural, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, éü 漢字 ≥ 1", "plain, éü 漢字 ≥ 1"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("two\nlines\tand\rmore", "two lines and more"),
        ("\u202eevil", "\\u202eevil"),
        ("\u2028", "\\u2028"),
        ("\x9b31m", "\\x9b31m"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_would_steer_the_terminal_is_shown_instead(text: str, shown: str) -> None:
    assert printable(text) == shown
    printable(text).encode()


def test_errors_that_quote_it_are_printable() -> None:
    error = GpubenchError("No file 'a\x1b[31m\nb'.", "Rename \u202ea.")
    assert (error.message, error.hint) == ("No file 'a\\x1b[31m b'.", "Rename \\u202ea.")
    assert error.args == (error.message,)


def test_plurals() -> None:
    assert [plural(1, "row"), plural(0, "row"), plural(2, "process", "processes")] == ["1 row", "0 rows", "2 processes"]
