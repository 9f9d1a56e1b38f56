"""A check as Markdown, for a comment on a pull request: worst first, unchanged rows folded."""

from __future__ import annotations

from collections.abc import Sequence

from gpubench.regression.verdicts import Check, RowCheck
from gpubench.render.check_cells import (
    FIGURES,
    HEADINGS,
    cells,
    headline,
    remarks,
    sentence,
    sources,
    told,
    undecided,
    worst_first,
)
from gpubench.render.markdown import escape, line
from gpubench.text import plural

MARKS = {"regressed": "❌", "inconclusive": "❔", "improved": "✅", "unchanged": "✅", "incomparable": "⚪"}
LONGEST = 60_000  # characters: GitHub refuses a comment of more than 65,536
FOLDED = ("unchanged", "incomparable")


def check_markdown(checks: Sequence[Check]) -> str:
    """All checks in one document; cut off, saying so, where it would be too long for a comment."""
    text = "\n\n".join(_one(check) for check in checks) + "\n"
    if len(text) <= LONGEST:
        return text
    lines, length = [], 0
    for one in text.splitlines():
        if (length := length + len(one) + 1) > LONGEST:
            break
        lines.append(one)
    folds = lines.count("<details>") - lines.count("</details>")
    return "\n".join([*lines, *["", "</details>"][: 2 * folds], "", "*Cut off: the rest is in the JSON.*", ""])


def _one(check: Check) -> str:
    parts = [f"## {MARKS[check.verdict]} {escape(headline(check))}", line(sources(check))]
    rows = worst_first(check)
    open_rows = [row for row in rows if row.verdict not in FOLDED]
    if open_rows:
        parts.append(_table(open_rows))
    items = [sentence(row, one) for row in open_rows for one in told(row)] + undecided(check) + remarks(check)
    if items:
        parts.append("\n".join(f"- {line(text)}" for text in items))
    for verdict in FOLDED:
        members = [row for row in rows if row.verdict == verdict]
        if members:
            summary = f"<summary>{plural(len(members), 'row')} {verdict}</summary>"
            parts.append(f"<details>\n{summary}\n\n{_table(members)}\n\n</details>")
    return "\n\n".join(parts)


def _table(rows: Sequence[RowCheck]) -> str:
    table = [
        "| " + " | ".join(HEADINGS.values()) + " |",
        "|" + "|".join(" ---: " if key in FIGURES else " --- " for key in HEADINGS) + "|",
    ]
    for row in rows:
        texts = {key: escape(text) for key, text in cells(row).items()}
        table.append("| " + " | ".join(texts[key] for key in HEADINGS) + " |")
    return "\n".join(table)
