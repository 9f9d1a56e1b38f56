"""Checks as workflow commands, which GitHub shows as annotations on the run."""

from __future__ import annotations

from gpubench.render.document import Content, Document
from gpubench.render.formats import Format

LEVELS = {"regressed": "error", "inconclusive": "warning", "improved": "notice"}
# GitHub shows at most 10 annotations of each level for a step; the rest would vanish in silence.
MOST = 9
# Documented for workflow commands: what would end the value or the command.
DATA = {"%": "%25", "\r": "%0D", "\n": "%0A"}
PROPERTY = {**DATA, ":": "%3A", ",": "%2C"}


def render(content: Content) -> str:
    """A line for each finding that is not `unchanged`, worst first over all checks; then each check's result."""
    documents = content.documents()
    annotations = [each for document in documents for each in _annotations(document)]
    lines: list[str] = []
    for level in ("error", "warning", "notice"):
        members = [(title, text) for this, title, text in annotations if this == level]
        lines += [command(level, title, text) for title, text in members[:MOST]]
        if len(members) > MOST:
            lines.append(command(level, "gpubench", f"{len(members) - MOST} more of this kind, see the log."))
    for document in documents:
        lines += [_escaped(text, {}) for text in (document.title, *(f"- {text}" for text in document.remarks))]
    return "\n".join(lines) + "\n"


def _annotations(document: Document) -> list[tuple[str, str, str]]:
    """Level, title and text of what is to be annotated of one check."""
    title = " ".join(document.about[:2])
    if document.status == "incomparable":
        return [("error", title, " ".join(document.remarks) or document.title)]
    notes = [note for row in document.rows for note in row.notes if not note.summarized]
    return [(LEVELS[note.status], title, note.text) for note in (*notes, *document.notes) if note.status in LEVELS]


def command(level: str, title: str, text: str) -> str:
    """One workflow command; nothing in `title` or `text` can end it or begin another."""
    return f"::{level} title={_escaped(title, PROPERTY)}::{_escaped(text, DATA)}"


def _escaped(text: str, table: dict[str, str]) -> str:
    """`text`, already printable, without what GitHub's runner would take for a command of its older or newer kind."""
    text = "".join(table.get(character, character) for character in text)
    return text if table or not text.lstrip().startswith("::") else f". {text}"


FORMAT = Format("github", ("check",), render, order=5)
