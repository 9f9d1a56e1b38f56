"""A check as workflow commands, which GitHub shows as annotations on the run."""

from __future__ import annotations

from collections.abc import Sequence

from gpubench.analysis.verdicts import Check, Verdict
from gpubench.render.verdicts import headline, remarks, sentence, told, undecided, worst_first
from gpubench.text import printable

LEVELS: dict[Verdict, str] = {"regressed": "error", "inconclusive": "warning", "improved": "notice"}
# GitHub shows at most 10 annotations of each level for a step; the rest would vanish in silence.
MOST = 9
# Documented for workflow commands: what would end the value or the command.
DATA = {"%": "%25", "\r": "%0D", "\n": "%0A"}
PROPERTY = {**DATA, ":": "%3A", ",": "%2C"}


def github(checks: Sequence[Check]) -> str:
    """A line for each finding that is not `unchanged`, worst first; then one that tells the result."""
    lines: list[str] = []
    for check in checks:
        title = f"{check.workload} {check.mode}"
        if check.verdict == "incomparable":
            lines.append(command("error", title, " ".join(remarks(check)) or headline(check)))
            continue
        found = [
            (LEVELS[one.verdict], sentence(row, one))
            for row in worst_first(check)
            for one in told(row)
            if one.verdict in LEVELS
        ]
        found += [("warning", text) for text in undecided(check)]
        for level in dict.fromkeys(level for level, _ in found):
            texts = [text for this, text in found if this == level]
            lines += [command(level, title, text) for text in texts[:MOST]]
            if len(texts) > MOST:
                lines.append(command(level, title, f"{len(texts) - MOST} more of this kind, see the log."))
        lines.append(_escaped(headline(check), {}))
    return "\n".join(lines) + "\n"


def command(level: str, title: str, text: str) -> str:
    """One workflow command; nothing in `title` or `text` can end it or begin another."""
    return f"::{level} title={_escaped(title, PROPERTY)}::{_escaped(text, DATA)}"


def _escaped(text: str, table: dict[str, str]) -> str:
    """`text` on one line, without what GitHub's runner would take for a command of its older or newer kind."""
    text = "".join(table.get(character, character) for character in printable(text)).replace("##[", "## [")
    return text if table or not text.lstrip().startswith("::") else f". {text}"
