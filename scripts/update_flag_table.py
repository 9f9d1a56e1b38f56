"""Puts the table of flags into docs/measurement.md, between its two markers; `--check` only tells if it differs.

python scripts/update_flag_table.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

from gpubench.flags import KINDS, FlagKind

PATH = Path(__file__).parents[1] / "docs" / "measurement.md"
BEGIN, END = "<!-- flags:begin -->\n", "<!-- flags:end -->\n"


def effects(kind: FlagKind) -> str:
    """What a flag of that kind does."""
    words = {
        "gates": "gates, below 3 processes" if kind.outweighed else "gates",
        "caution": "said beside the recommendation",
    }
    parts = [words[kind.effect]] if kind.effect in words else []
    parts += ["measured again"] if kind.repeats else []
    parts += ["round replaced"] if kind.disturbs else []
    parts += ["fails under `--strict`"] if kind.strict else []
    return "; ".join(parts) or "note"


def table() -> str:
    """The table, one line for each kind."""
    lines = ["| flag | set when | effect | what to do |", "| --- | --- | --- | --- |"]
    lines += [f"| `{kind.name}` | {kind.when} | {effects(kind)} | {kind.remedy} |" for kind in KINDS.values()]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Writes the table, or compares; the exit code."""
    text = PATH.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    wanted = f"{before}{BEGIN}{table()}{END}{after}"
    if "--check" in sys.argv:
        return 0 if wanted == text else 1
    PATH.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
