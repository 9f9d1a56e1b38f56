"""A report as Markdown, for an issue, a pull request or a README."""

from __future__ import annotations

import re

from gpubench.analysis.groups import Answer
from gpubench.analysis.table import lines, rows
from gpubench.render.cells import FIGURES, HEADINGS, cells
from gpubench.render.heading import GROUPS, heading, remarks, verdict
from gpubench.report.model import Recommendation, Report
from gpubench.text import printable

BREAK = "<!-- -->"
HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def markdown(report: Report, recommendation: Recommendation | None = None, snippet: str = "") -> str:
    """Heading, table, remarks and the recommendation (by default the report's own) with its code snippet."""
    recommendation = recommendation or report.recommendation
    title, where = heading(report)
    parts = [f"## {escape(title)}", line(where)]
    if rows(report):
        parts.append(_table(report, recommendation.id if recommendation else None))
    found = remarks(report)
    if found:
        parts.append(_list(found))
    if recommendation:
        parts.append(recommended(report, recommendation, snippet))
    return "\n\n".join(parts) + "\n"


def answered(answer: Answer, snippet: str = "") -> str:
    """What one subject's reports recommend, or why they recommend nothing; no table."""
    title, where = heading(answer.report)
    parts = [f"## {escape(title)}", line(where), line(printable(f"from {answer.source}"))]
    if answer.advice.recommendation:
        parts.append(recommended(answer.report, answer.advice.recommendation, snippet))
    else:
        parts.append(_list([printable(reason) for reason in answer.advice.reasons]))
    return "\n\n".join(parts) + "\n"


def recommended(report: Report, recommendation: Recommendation, snippet: str = "") -> str:
    """The recommended configuration, its speedup versus what, the reasons and the code that switches it on."""
    first, second = verdict(report, recommendation)
    parts = [f"**{escape(first)}**", line(second), _list([printable(text) for text in recommendation.reasons])]
    if snippet:
        code = "\n".join(printable(line) for line in snippet.splitlines())
        # A fence longer than any run of backticks inside cannot be closed from inside.
        longest = max((len(run) for run in re.findall("`+", code)), default=0)
        fence = "`" * max(3, longest + 1)
        parts.append(f"{fence}\n{code}\n{fence}")
    return "\n\n".join(part for part in parts if part)


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


def _table(report: Report, recommended: str | None) -> str:
    table = [
        "| " + " | ".join(HEADINGS.values()) + " |",
        "|" + "|".join(" ---: " if key in FIGURES else " --- " for key in HEADINGS) + "|",
    ]
    for group, members in lines(report).items():
        if members and GROUPS[group]:
            table.append("| | *" + GROUPS[group] + "*" + " |" * (len(HEADINGS) - 1))
        for member in members:
            texts = {key: escape(text) for key, text in cells(member).items()}
            if member.row.measurement.id == recommended:
                texts["configuration"] = f"**{texts['configuration']}**"
            table.append("| " + " | ".join(texts[key] for key in HEADINGS) + " |")
    return "\n".join(table)


def _list(texts: list[str]) -> str:
    return "\n".join(f"- {line(text)}" for text in texts)
