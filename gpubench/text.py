"""Text from outside (reports, files, users' names) made safe to print; no import of anything else."""

from __future__ import annotations

import re
import unicodedata

# Cc: control characters, ANSI's escape among them. Cf: invisible marks that reorder or hide text on a terminal.
# Cs: lone surrogates, which cannot be encoded. Cn: not assigned, among them what XML forbids (U+FFFE, U+FFFF).
# Zl, Zp: line and paragraph separators.
UNPRINTABLE = frozenset({"Cc", "Cf", "Cn", "Cs", "Zl", "Zp"})
MAX_MESSAGE = 500  # characters of an error that are quoted: some quote whole tensors


def printable(text: str) -> str:
    """`text` on one line: whatever would move the cursor, colour or hide something becomes a visible escape.

    `##[` is a command to some runners of CI wherever it stands in a log.
    """
    shown = "".join(
        character if unicodedata.category(character) not in UNPRINTABLE else _visible(character) for character in text
    )
    return shown.replace("##[", "## [")


def _visible(character: str) -> str:
    if character in "\n\t\r":
        return " "
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def encodable(text: str) -> str:
    """`text` as UTF-8 can hold it: what a path has of bytes that are none becomes a visible escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def message_of(error: BaseException) -> str:
    """The error's text as valid UTF-8: a user's exception may contain lone surrogates or fail in `__str__`."""
    try:
        return str(error).encode("utf-8", "replace").decode()
    except Exception as second:  # noqa: BLE001 - whatever its __str__ raises
        return f"(its message cannot be shown: {type(second).__name__})"


def kind_and_message(error: BaseException) -> str:
    """`ValueError: the first line of its message`, or as much as anyone reads; the kind alone where there is none."""
    first = (message_of(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:MAX_MESSAGE] if first else type(error).__name__


def times(count: int) -> str:
    """`once`, `2 times`."""
    return "once" if count == 1 else f"{count} times"


def plural(count: int, word: str, many: str = "") -> str:
    """`1 row`, `2 rows`, `2 patches`."""
    return f"{count} {word if count == 1 else many or plural_of(word)}"


def plural_of(word: str) -> str:
    """`rows`, `patches`, `queries`; a word that looks like a plural is taken for one."""
    if re.search(r"(ss|sh|ch|x|z)$", word):
        return f"{word}es"
    if word.endswith("s"):
        return word
    return f"{word[:-1]}ies" if re.search(r"[^aeiou]y$", word) else f"{word}s"


def clause(text: str) -> str:
    """`text` in one line, without a full stop at its end: for the middle of a sentence."""
    line = " ".join(text.split())
    return line if line.endswith("...") else line.rstrip(".")


def sentence(text: str) -> str:
    """`text` in one line, with one full stop at its end."""
    line = clause(text)
    return line if not line or line.endswith(("...", "!", "?")) else f"{line}."
