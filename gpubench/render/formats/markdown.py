"""Documents as Markdown, for an issue, a comment on a pull request or a README."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gpubench.render.document import Content, Document, Note, Recommended, RowGroup, Table
from gpubench.render.formats import Format

BREAK = "<!-- -->"
HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
MARKS = {"regressed": "❌ ", "inconclusive": "❔ ", "improved": "✅ ", "unchanged": "✅ ", "incomparable": "⚪ "}
LONGEST = 60_000  # characters: GitHub refuses a comment of more than 65,536


def render(content: Content) -> str:
    """All documents in one text; a check's is cut off, saying so, where it would be too long for a comment."""
    text = "\n\n".join(_document(document) for document in content.documents()) + "\n"
    return _cut(text) if content.kind == "check" and len(text) > LONGEST else text


def _cut(text: str) -> str:
    lines, length = [], 0
    for one in text.splitlines():
        if (length := length + len(one) + 1) > LONGEST:
            break
        lines.append(one)
    folds = lines.count("<details>") - lines.count("</details>")
    return "\n".join([*lines, *["", "</details>"][: 2 * folds], "", "*Cut off: the rest is in the JSON.*", ""])


def _document(document: Document) -> str:
    """Folded groups come last, so that what matters stays together."""
    parts = [f"## {MARKS.get(document.status, '')}{escape(document.title)}"] if document.title else []
    parts += [line(text) for text in document.subtitle]
    groups = document.table.groups if document.table else ()
    unfolded = [group for group in groups if not group.is_folded]
    if document.table and unfolded:
        parts.append(_table(document.table, unfolded))
    notes = [note for group in unfolded for row in group.rows for note in row.notes if not note.summarized]
    parts.append(_list([*notes, *document.notes]))
    if document.recommended:
        parts += _recommended(document.recommended)
    if document.table:
        parts += [_folded(document.table, group) for group in groups if group.is_folded]
    return "\n\n".join(part for part in parts if part)


def _folded(table: Table, group: RowGroup) -> str:
    return f"<details>\n<summary>{escape(group.title)}</summary>\n\n{_table(table, [group])}\n\n</details>"


def _table(table: Table, groups: Sequence[RowGroup]) -> str:
    headings = " | ".join(escape(column.heading) for column in table.columns)
    lines = [f"| {headings} |", "|" + "|".join(" ---: " if each.is_figure else " --- " for each in table.columns) + "|"]
    for group in groups:
        if group.title and not group.is_folded:
            lines.append(f"| | *{escape(group.title)}*" + " |" * (len(table.columns) - 1))
        for row in group.rows:
            texts = {column: escape(row.cells[column.key]) for column in table.columns}
            cells = (f"**{text}**" if row.is_chosen and column.folds else text for column, text in texts.items())
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _recommended(block: Recommended) -> list[str]:
    parts = [f"**{escape(block.headline)}**", line(block.detail), _list(block.reasons)]
    if block.code:
        code = "\n".join(block.code)
        # A fence longer than any run of backticks inside cannot be closed from inside.
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", code)), default=0))
        parts.append(f"{fence}\n{code}\n{fence}")
    return parts


def _list(items: Sequence[Note]) -> str:
    return "\n".join(f"- {line(note.text)}" for note in items)


def escape(text: str) -> str:
    """`text`, already printable, so that Markdown shows it as it is: no markup, HTML, link, mention or further cell.

    GitHub and GitLab make links of `@name`, `#1`, `!1` and addresses wherever they stand; an empty comment inside
    keeps them from being one and is not shown.
    """
    text = "".join(HTML.get(character, character) for character in text)
    text = re.sub(r"([\\`*\[\]|~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", text)
    text = re.sub(r"([@#!$%])(?=\w)", rf"\1{BREAK}", text)
    return re.sub(r"(?i)(https?|ftp|www|mailto|xmpp|GH)([:.-])", rf"\1{BREAK}\2", text)


def line(text: str) -> str:
    """The same for a line or a list's item, so that it begins no heading, list or rule either."""
    return re.sub(r"^(\s*)([#+=-]+|\d+[.)])(?=\s|$)", rf"\1{BREAK}\2", escape(text))


FORMAT = Format("markdown", ("report", "answer", "check", "history", "claims"), render, ending=".md", order=3)
