from __future__ import annotations

import re
from pathlib import Path

import pytest

import gpubench
from gpubench.errors import GpubenchError
from gpubench.text import clause, kind_and_message, plural, plural_of, printable, sentence, times

PACKAGE = Path(gpubench.__file__).parent


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


def test_an_error_is_quoted_in_short() -> None:
    assert kind_and_message(ValueError(" one\ntwo")) == "ValueError: one"
    assert kind_and_message(KeyError()) == "KeyError"
    assert len(kind_and_message(ValueError(10**6 * "x"))) == 500


def test_plurals() -> None:
    assert [plural(1, "row"), plural(0, "row"), plural(2, "process", "processes")] == ["1 row", "0 rows", "2 processes"]


@pytest.mark.parametrize(
    ("word", "many"),
    [
        ("row", "rows"), ("image", "images"), ("patch", "patches"), ("box", "boxes"), ("mesh", "meshes"),
        ("class", "classes"), ("query", "queries"), ("key", "keys"), ("day", "days"), ("frames", "frames"),
        ("series", "series"), ("3D patch", "3D patches"),
    ],
)  # fmt: skip
def test_the_plural_of_any_item(word: str, many: str) -> None:
    assert plural_of(word) == many
    assert (plural(1, word), plural(2, word)) == (f"1 {word}", f"2 {many}")


def test_times() -> None:
    assert [times(1), times(2)] == ["once", "2 times"]


@pytest.mark.parametrize(
    ("text", "inside", "whole"),
    [
        ("it failed", "it failed", "it failed."),
        ("it failed.", "it failed", "it failed."),
        ("needs bf16..", "needs bf16", "needs bf16."),
        ("two\n lines. ", "two lines", "two lines."),
        ("and more...", "and more...", "and more..."),
        ("why?", "why?", "why?"),
        ("", "", ""),
    ],
)
def test_a_quoted_sentence_gets_one_full_stop(text: str, inside: str, whole: str) -> None:
    assert (clause(text), sentence(text)) == (inside, whole)


def test_an_error_that_quotes_a_sentence_ends_once() -> None:
    error = GpubenchError(f"It failed: {'no bf16.'}.", f"Look at {'../models/a..b.py'}. Or at {'this.'}.")
    assert (error.message, error.hint) == ("It failed: no bf16.", "Look at ../models/a..b.py. Or at this.")
    assert GpubenchError("Looked in .. and so on...").message == "Looked in .. and so on..."


# A number that is followed by a plural as it stands: it reads "1 rows" now and then. `plural` writes both.
COUNTED = re.compile(
    r"\{(?!\w*plural)[^{}:]*(?:len\([^{}]*\)|count|iterations)\} (?:[a-z]+ )?"
    r"(?:rows|rounds|samples|iterations|processes|cores|threads|kernels|items)\b"
)
ENDS_TWICE = re.compile(r"\{[^{}]*(?:\.reason|problem|\.skip)\}\.[\"']")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_sentences_are_made_by_the_helpers(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if 'f"' in line or "f'" in line]
    assert not [line for line in lines if COUNTED.search(line) and "GpubenchError" not in line]
    # GpubenchError takes the second full stop away itself; its message may stand on a line of its own.
    assert not [line for line in lines if ENDS_TWICE.search(line) and re.search(r"append\(|note|reason=", line)]
