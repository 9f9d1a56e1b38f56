"""A check as workflow commands, which GitHub shows as annotations on the run."""

from __future__ import annotations

from collections.abc import Sequence

from gpubench.regression.verdicts import Check, Verdict
from gpubench.render.check_cells import headline, remarks, sentence, told, undecided, worst_first
from gpubench.text import printable

LEVELS: dict[Verdict, str] = {"regressed": "error", "inconclusive": "warning", "improved": "notice"}
# GitHub shows at most 10 annotations of each level for a step; the rest would vanish in silence.
MOST = 9
# Documented for workflow commands: what would end the value or the command.
DATA = {"%": "%25", "\r": "%0D", "\n": "%0A"}
PROPERTY = {**DATA, ":": "%3A", ",": "%2C"}


def github(checks: Sequence[Check]) -> str:
    """A line for each finding that is not `unchanged`, worst first over all checks; then each check's result."""
    found = [one for check in checks for one in _found(check)]
    lines: list[str] = []
    for level in ("error", "warning", "notice"):
        members = [(title, text) for this, title, text in found if this == level]
        lines += [command(level, title, text) for title, text in members[:MOST]]
        if len(members) > MOST:
            lines.append(command(level, "gpubench", f"{len(members) - MOST} more of this kind, see the log."))
    for check in checks:
        lines += [_escaped(text, {}) for text in (headline(check), *(f"- {note}" for note in remarks(check)))]
    return "\n".join(lines) + "\n"


def _found(check: Check) -> list[tuple[str, str, str]]:
    """Level, title and text of what is to be annotated of one check."""
    title = f"{check.workload} {check.mode}"
    if check.verdict == "incomparable":
        return [("error", title, " ".join(remarks(check)) or headline(check))]
    found = [
        (LEVELS[one.verdict], title, sentence(row, one))
        for row in worst_first(check)
        for one in told(row)
        if one.verdict in LEVELS
    ]
    return found + [("warning", title, text) for text in undecided(check)]


def command(level: str, title: str, text: str) -> str:
    """One workflow command; nothing in `title` or `text` can end it or begin another."""
    return f"::{level} title={_escaped(title, PROPERTY)}::{_escaped(text, DATA)}"


def _escaped(text: str, table: dict[str, str]) -> str:
    """`text` on one line, without what GitHub's runner would take for a command of its older or newer kind."""
    text = "".join(table.get(character, character) for character in printable(text))
    return text if table or not text.lstrip().startswith("::") else f". {text}"
